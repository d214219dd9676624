"""The machine that runs qdeploy: a process a bundle, started with the same Python."""

from __future__ import annotations

import sys
from pathlib import Path

from qdeploy.core import plugins
from qdeploy.core.errors import QDeployError
from qdeploy.targets._worker import WorkerProcess


class Target:
    """Where bundles are timed. ``address`` is what follows the target's name on the command line; here, nothing.

    A target starts the runtime's own worker script (for onnxruntime the installed runner.py), never a file out of a
    bundle. One that runs elsewhere copies that script and the bundle there, and starts it through whatever reaches
    the place: ``WorkerProcess(["ssh", host, "python3", script, "worker"], bundle=path_there, name=...)``.
    """

    def __init__(self, address: str = "") -> None:
        if address:
            raise QDeployError(f"The target 'local' takes no address, not {address!r}.", "Use --target local.")
        self.name = "local"

    def open(self, bundle: Path, *, name: str, runtime: str = "onnxruntime") -> WorkerProcess:
        """Start the process that will time ``bundle``, called ``name`` in errors."""
        script = getattr(plugins.load("runtime", runtime), "worker", None)
        if script is None:
            raise QDeployError(f"The runtime {runtime!r} has no worker for this machine.", "Use --runtime onnxruntime.")
        # -P keeps the script's folder, which is qdeploy itself, off the import path: qdeploy/graph is no "graph".
        command = [sys.executable, "-P", str(script), "worker"]
        return WorkerProcess(command, bundle=str(bundle.resolve()), name=name)
