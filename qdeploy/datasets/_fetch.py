"""Downloading one file: whole and checked, or not there at all."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import urllib.request
from pathlib import Path

TIMEOUT_SECONDS = 60


def fetch(url: str, path: Path, *, size: int | None = None, sha256: str | None = None) -> None:
    """Download ``url`` to ``path`` through a temporary file in the same folder.

    ``size`` in bytes and ``sha256`` (hex) are what the file must have; without them whoever reads it checks what is in
    it. Raises OSError (URLError is one) where it cannot be had or is another file: ``ensure_files`` makes that one
    error for people.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        part = Path(file.name)
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
                shutil.copyfileobj(answer, file)
            file.flush()
            with part.open("rb") as written:
                found = hashlib.file_digest(written, "sha256").hexdigest()
            bytes_found = part.stat().st_size
            if size not in (None, bytes_found) or sha256 not in (None, found):
                raise OSError(f"{url} has {bytes_found} bytes, sha256 {found}; expected {size}, {sha256}")
            part.chmod(0o644)  # a temporary file is its owner's alone
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
