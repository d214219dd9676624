"""qdeploy: from a PyTorch model to a small, fast, provably right integer artifact that runs in onnxruntime."""

import os

__version__ = "0.1.0"

# onnxruntime's wheels report usage to their makers: a thread, files in the home folder, a connection. Read at import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
