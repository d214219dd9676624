"""Read a bundle for checking, with the runner's own reader: what a device sees is what is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdeploy import runner
from qdeploy.runtimes._errors import qdeploy_errors


def read_bundle(path: Path) -> dict[str, Any]:
    """``runner.read_bundle`` with its errors as QDeployErrors."""
    with qdeploy_errors():
        return runner.read_bundle(path)
