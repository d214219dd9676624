"""Read a bundle for checking, with the runner's own reader: what a device sees is what is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdeploy import runner
from qdeploy.core.errors import QDeployError


def read_bundle(path: Path) -> dict[str, Any]:
    """``runner.read_bundle`` with its errors as QDeployErrors."""
    try:
        return runner.read_bundle(path)
    except runner.RunnerError as error:
        raise QDeployError(error.message, error.hint) from error


def selftest(path: Path, threads: int | None = None) -> dict[str, Any]:
    """``runner.selftest`` with its errors as QDeployErrors: the golden vectors on this machine."""
    try:
        return runner.selftest(path) if threads is None else runner.selftest(path, threads=threads)
    except runner.RunnerError as error:
        raise QDeployError(error.message, error.hint) from error
