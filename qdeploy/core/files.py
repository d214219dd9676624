"""Writing files so that a killed process leaves the old content or the new, never half of it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from qdeploy.core.errors import QDeployError


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write ``data`` to ``path`` through a temporary file in the same folder and a rename.

    QDeployError: a folder or a device is there, which a rename would take the place of.
    """
    if path.exists() and not path.is_file():
        raise QDeployError(f"{path} is no file, so nothing is written there.", "Name a file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private to its owner; a result is as readable as any other file of the user.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def require_writable(folder: Path, why: str) -> None:
    """QDeployError if no file can be made in ``folder``: before work is done for it."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise QDeployError(f"{folder} cannot be written. {why}", "Give yourself the right to write there, or copy it.")


def sha256(path: Path) -> str:
    """The hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
