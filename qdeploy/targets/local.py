"""The machine that runs qdeploy: a process a bundle, started with the same Python."""

from __future__ import annotations

from pathlib import Path

from qdeploy.core.errors import QDeployError
from qdeploy.targets._base import Place, local_command
from qdeploy.targets._worker import WorkerProcess


class Target(Place):
    """Where bundles run. ``address`` is what follows the target's name on the command line; here, nothing.

    A target that runs elsewhere copies the worker's script and the bundle there, and starts it through whatever reaches
    the place: ``WorkerProcess(["ssh", host, "python3", script, "worker"], bundle=path_there, name=...)``.
    """

    def __init__(self, address: str = "") -> None:
        if address:
            raise QDeployError(f"The target 'local' takes no address, not {address!r}.", "Use --target local.")
        self.name = "local"

    def open(self, bundle: Path, *, name: str, runtime: str = "onnxruntime") -> WorkerProcess:
        """Start the process that will run ``bundle``, called ``name`` in errors."""
        return WorkerProcess(local_command(runtime), bundle=str(bundle.resolve()), name=name)
