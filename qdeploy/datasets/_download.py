"""Files that torchvision downloads: where they lie, and what is said when they cannot be had."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError
from zipfile import BadZipFile

from qdeploy.core.errors import QDeployError

HINT = (
    "Set data.root to a folder that holds the files, in the layout that torchvision writes"
    " (--set data.root=DIR), or data.download to true on a machine with internet access."
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
    except (RuntimeError, URLError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise QDeployError(f"Data set {name} could not be downloaded: {reason}\n{_listed(files)}", HINT) from error
    if _missing(files):
        raise QDeployError(f"Data set {name} is incomplete after the download: {_listed(files)}", HINT)


@contextlib.contextmanager
def reading(name: str, folder: Path) -> Iterator[None]:
    """Turn what torchvision and numpy raise on damaged files into one QDeployError that says which folder."""
    try:
        yield
    except (AssertionError, BadZipFile, EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise QDeployError(
            f"The files of data set {name} in {folder} cannot be read: {type(error).__name__}: {error}",
            "They are damaged or of another data set. Delete them and download them again, or set data.root.",
        ) from error


def _missing(files: Sequence[Path]) -> list[Path]:
    return [file for file in files if not file.is_file()]


def _listed(files: Sequence[Path]) -> str:
    missing = _missing(files)
    return f"missing in {missing[0].parent}: {', '.join(file.name for file in missing)}." if missing else ""
