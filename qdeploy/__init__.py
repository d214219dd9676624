"""qdeploy: from a PyTorch model to a small, fast, provably right integer artifact that runs in onnxruntime."""

__version__ = "0.1.0"
