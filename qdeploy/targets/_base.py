"""What targets share: how a worker is started, and that a place is left as it was found."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

from qdeploy.core import plugins
from qdeploy.core.errors import QDeployError
from qdeploy.targets._worker import WorkerProcess


class Place(ABC):
    """Where bundles run. A context manager: leaving it removes what was left there.

    A target starts the runtime's own worker (for onnxruntime the installed runner.py), never a file out of a bundle.
    """

    name: str  # what records and tables call it: "ssh://pi@host"

    @abstractmethod
    def open(self, bundle: Path, *, name: str, runtime: str = "onnxruntime") -> WorkerProcess:
        """Start a process there that will run ``bundle``, called ``name`` in errors. QDeployError: it cannot."""

    def close(self) -> None:  # noqa: B027 - most places are left as they were found
        """Remove what was left there. Harmless when there is nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_target(address: str) -> Place:
    """The target that "local", "ssh://pi@host" or "qemu:cortex-a76" names."""
    name, _, rest = address.partition(":")
    place: Place = plugins.load("target", name)(rest.removeprefix("//"))
    return place


def stand_alone_worker(runtime: str, place: str) -> Path:
    """The script that serves ``runtime`` where no qdeploy is installed. QDeployError: it has none."""
    script: Path | None = getattr(plugins.load("runtime", runtime), "worker", None)
    if script is None:
        raise QDeployError(f"The runtime {runtime!r} runs on --target local only, not on {place}.", "Use onnxruntime.")
    return script


def local_command(runtime: str) -> list[str]:
    """What serves ``runtime`` with this very Python."""
    script: Path | None = getattr(plugins.load("runtime", runtime), "worker", None)
    if script is None:
        return [sys.executable, "-m", "qdeploy.runtimes._worker", runtime]
    # -P keeps the script's folder, which is qdeploy itself, off the import path: qdeploy/graph is no "graph".
    return [sys.executable, "-P", str(script), "worker"]
