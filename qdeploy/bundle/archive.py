"""The container of a bundle: a zip of five fixed names, the same bytes for the same content, safe to read.

Members are stored, not deflated: a compressed stream depends on the zlib that made it, and a reader that refuses
compressed members cannot be handed a decompression bomb. Names never become paths: what is read is looked up by the
names below, and anything else in the file is a reason to refuse it.
"""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import QDeployError

MANIFEST, MODEL, GOLDEN, RUNNER, CARD = "manifest.json", "model.onnx", "golden.npz", "run.py", "README.md"

# In the order in which they lie in the file, with the most bytes that each may have. 2 GiB is protobuf's own limit.
LIMITS = {MANIFEST: 64 << 20, MODEL: 2 << 30, GOLDEN: 1 << 30, RUNNER: 1 << 20, CARD: 16 << 20}
MEMBERS = tuple(LIMITS)

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip can hold
_MODE = stat.S_IFREG | 0o644
_UNIX = 3
_ENCRYPTED = 0x1
# What zipfile raises for a damaged file, by the part of it that is damaged.
_UNREADABLE = (zipfile.BadZipFile, OSError, EOFError, ValueError, struct.error, NotImplementedError)
_HINT = "A bundle is what `qdeploy build` writes; do not repack it. If it was downloaded, download it again."


def archive(members: Mapping[str, bytes]) -> bytes:
    """A zip of ``members`` (name -> content) in their order: stored, dated 1980-01-01, readable by everyone."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = _UNIX  # zipfile would write the system it runs on
            info.external_attr = _MODE << 16
            file.writestr(info, data)
    return buffer.getvalue()


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """``arrays`` as np.savez would write them, sorted by name, with nothing that depends on when or where."""
    members = {}
    for name in sorted(arrays):
        buffer = io.BytesIO()
        contiguous = np.ascontiguousarray(arrays[name])
        np.lib.format.write_array(buffer, contiguous, version=(1, 0), allow_pickle=False)
        members[f"{name}.npy"] = buffer.getvalue()
    return archive(members)


def read_members(path: Path, names: tuple[str, ...] = MEMBERS) -> dict[str, bytes]:
    """The content of the members ``names`` of the bundle ``path``, a zip or a folder that one was unpacked into.

    A zip that is not exactly what ``archive`` writes (other names, a name twice, links, compressed, encrypted or
    oversized members) is a QDeployError, and so is a folder in which a file is missing or is a link.
    """
    try:
        return _read_folder(path, names) if path.is_dir() else _read_zip(path, names)
    except FileNotFoundError:
        raise QDeployError(f"There is no bundle at {path}.", "`qdeploy build` writes NAME.qdeploy.zip.") from None
    except _UNREADABLE as error:
        raise QDeployError(f"{path} cannot be read as a bundle: {error}.", _HINT) from error


def _read_zip(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        infos = file.infolist()
        for info in infos:
            _check(path, info)
        found = [info.filename for info in infos]
        _refuse_if(len(set(found)) != len(found), path, "it holds a name twice")
        missing = [name for name in MEMBERS if name not in found]
        _refuse_if(bool(missing), path, f"{', '.join(missing)} is missing")
        return {name: file.read(name) for name in names}


def _check(path: Path, info: zipfile.ZipInfo) -> None:
    # orig_filename is what the file says; filename is what zipfile made of it (cut at a NUL, other separators).
    name = info.orig_filename
    _refuse_if(name not in LIMITS or info.filename != name, path, f"it holds {name!r}")
    kind = stat.S_IFMT(info.external_attr >> 16)
    _refuse_if(kind not in (0, stat.S_IFREG) or info.is_dir(), path, f"{name} is not a plain file in it")
    _refuse_if(bool(info.flag_bits & _ENCRYPTED), path, f"{name} is encrypted in it")
    _refuse_if(info.compress_type != zipfile.ZIP_STORED, path, f"{name} is compressed in it")
    _refuse_if(info.compress_size != info.file_size, path, f"it lies about the size of {name}")
    _refuse_if(info.file_size > LIMITS[name], path, f"{name} has {info.file_size} bytes in it, too many")


def _read_folder(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    members = {}
    for name in names:
        file = path / name
        _refuse_if(not file.exists() and not file.is_symlink(), path, f"{name} is missing")
        _refuse_if(file.is_symlink() or not file.is_file(), path, f"{name} is not a plain file in it")
        size = file.stat().st_size
        _refuse_if(size > LIMITS[name], path, f"{name} has {size} bytes, too many")
        members[name] = file.read_bytes()
    return members


def _refuse_if(wrong: bool, path: Path, what: str) -> None:
    if wrong:
        raise QDeployError(f"{path} is not a qdeploy bundle: {what}.", _HINT)
