"""Downloading one file: whole and checked, or not there at all."""

from __future__ import annotations

import hashlib
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

TIMEOUT_SECONDS = 60
MOST_BYTES = 2**26  # of a file whose size is not known
CHUNK_BYTES = 2**20


def fetch(url: str, path: Path, *, size: int | None = None, sha256: str | None = None) -> None:
    """Download ``url`` to ``path`` through a temporary file in the same folder.

    ``size`` in bytes and ``sha256`` (hex) are what the file must have; without them it has what the server announces,
    at most MOST_BYTES, and whoever reads it checks what is in it. Raises OSError (URLError is one) where it cannot be
    had or is another file: ``ensure_files`` makes that one error for people.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        part = Path(file.name)
        try:
            try:
                with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
                    _copy(answer, file, url, MOST_BYTES if size is None else size)
            except HTTPException as error:
                raise OSError(f"{url} is not answered as HTTP has it: {error!r}") from error
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


def _copy(answer: Any, file: IO[bytes], url: str, most: int) -> None:
    """Copy a body. OSError: it is longer than ``most`` bytes, or shorter than the server announced."""
    announced: int | None = answer.length  # what is still to come: none is known of chunks
    copied = 0
    while chunk := answer.read(min(CHUNK_BYTES, most + 1 - copied)):
        file.write(chunk)
        copied += len(chunk)
        if copied > most:
            raise OSError(f"{url} has more than {most} bytes")
    if announced is not None and copied != announced:
        raise OSError(f"{url} broke off after {copied} of {announced} bytes")
