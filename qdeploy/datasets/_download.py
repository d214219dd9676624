"""Files that are downloaded: where they lie, and what is said when they cannot be had or read."""

from __future__ import annotations

import contextlib
import csv
import lzma
import os
import sys
import tarfile
import tokenize
import zlib
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError
from zipfile import BadZipFile

from qdeploy.core.errors import QDeployError

HINT = (
    "Set data.root to a folder that holds the files, in the layout that docs/datasets.md shows"
    " (--set data.root=DIR), or data.download to true on a machine with internet access."
)
# What readers raise on damaged files.
DAMAGES: tuple[type[Exception], ...] = (
    *(AssertionError, EOFError, KeyError, OSError, OverflowError, RuntimeError, TypeError, ValueError),
    *(BadZipFile, csv.Error, lzma.LZMAError, tarfile.TarError, zlib.error),
    *(SyntaxError, tokenize.TokenError),  # PIL's of a PNG's chunks, numpy's of an array's header
)


def data_root(root: str | None) -> Path:
    """The folder for downloaded data: ``root``, else $QDEPLOY_DATA_ROOT, else ~/.cache/qdeploy/data."""
    chosen = root or os.environ.get("QDEPLOY_DATA_ROOT")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "qdeploy" / "data"


def ensure_files(name: str, files: Sequence[Path], allowed: bool, fetch: Callable[[], Any]) -> None:
    """Return when all ``files`` of data set ``name`` exist, calling ``fetch`` to download them where ``allowed``.

    Raises QDeployError that names the missing files.
    """
    if not _missing(files):
        return
    if not allowed:
        raise QDeployError(f"Data set {name} is incomplete and data.download is false: {_listed(files)}", HINT)
    try:
        # torchvision reports "Extracting ..." with print; stdout belongs to the tables.
        with contextlib.redirect_stdout(sys.stderr):
            fetch()
    except (RuntimeError, URLError, OSError, HTTPException) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise QDeployError(f"Data set {name} could not be downloaded: {reason}\n{_listed(files)}", HINT) from error
    if _missing(files):
        raise QDeployError(f"Data set {name} is incomplete after the download: {_listed(files)}", HINT)


@contextlib.contextmanager
def reading(name: str, folder: Path) -> Iterator[None]:
    """Turn what readers raise on damaged files into one QDeployError that says which folder."""
    try:
        yield
    except _damages() as error:
        raise QDeployError(
            f"The files of data set {name} in {folder} cannot be read: {type(error).__name__}: {error}",
            "They are damaged or of another data set. Delete them and download them again, or set data.root.",
        ) from error


def _damages() -> tuple[type[Exception], ...]:
    """DAMAGES, and PIL's own where PIL is loaded: only then can it have raised one."""
    pillow = sys.modules.get("PIL.Image")
    return DAMAGES if pillow is None else (*DAMAGES, pillow.DecompressionBombError)


def _missing(files: Sequence[Path]) -> list[Path]:
    return [file for file in files if not file.is_file()]


def _listed(files: Sequence[Path]) -> str:
    missing = _missing(files)
    return f"missing in {missing[0].parent}: {', '.join(file.name for file in missing)}." if missing else ""
