"""Damaged files and broken downloads, told as one error."""

from __future__ import annotations

import csv
import io
import lzma
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from http.client import BadStatusLine, IncompleteRead
from pathlib import Path

import numpy as np
import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.datasets import cifar10, eurosat, imdb, sequences
from qdeploy.datasets._download import ensure_files, reading


def png(width: int, height: int) -> bytes:
    """An image that says it is this large and has nothing in it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def write_bomb(root: Path) -> None:
    for name in eurosat.Dataset.classes:
        (root / "eurosat" / "2750" / name).mkdir(parents=True)
        (root / "eurosat" / "2750" / name / f"{name}_1.jpg").write_bytes(png(60_000, 60_000))


def write_broken_png(root: Path) -> None:
    """A chunk without a name after the pixels."""
    write_bomb(root)
    for file in root.rglob("*.jpg"):
        file.write_bytes(png(64, 64).replace(b"IEND", b"\0\1\2\3"))


def write_broken_array(root: Path) -> None:
    """An array whose header has no end, in a whole archive."""
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    with zipfile.ZipFile(root / "cifar10.npz", "w") as file:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            file.writestr(f"{name}.npy", array.getvalue().replace(b"}", b"("))


def write_packed_sequences(root: Path) -> None:
    (root / "sequences").mkdir()
    (root / "sequences" / "Video.txt.xz").write_bytes(b"not xz")


def write_long_id(root: Path) -> None:
    (root / "sequences").mkdir()
    (root / "sequences" / "Video.txt").write_text(f"1 {10**30}\n")


def write_tables(root: Path, content: bytes) -> None:
    for part in ("train", "test"):
        (root / f"imdb_{part}.csv.xz").write_bytes(content)


def write_damaged_table(root: Path) -> None:
    packed = bytearray(lzma.compress(b"id,label,text\n" + bytes(range(32, 127)) * 100))
    packed[len(packed) // 2] ^= 0xFF
    write_tables(root, bytes(packed))


def write_endless_cell(root: Path) -> None:
    write_tables(root, lzma.compress(b'id,label,text\n0,0,"' + b"x" * (csv.field_size_limit() + 1)))


def write_damaged_archive(root: Path) -> None:
    """One flipped byte in the middle of what is packed."""
    (root / "aclImdb" / "train" / "neg").mkdir(parents=True)
    (root / "aclImdb" / "train" / "neg" / "0_1.txt").write_text("".join(str(i**3) for i in range(5000)))
    archive = root / "aclImdb_v1.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(root / "aclImdb", "aclImdb")
    (root / "aclImdb" / "train" / "neg" / "0_1.txt").unlink()
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    archive.write_bytes(content)


@pytest.mark.parametrize(
    ("module", "write"),
    [
        (eurosat, write_bomb),
        (eurosat, write_broken_png),
        (cifar10, write_broken_array),
        (sequences, write_packed_sequences),
        (sequences, write_long_id),
        (imdb, write_damaged_table),
        (imdb, write_endless_cell),
        (imdb, write_damaged_archive),
    ],
    ids=lambda value: value.__name__.rpartition(".")[2],
)
def test_damaged_files_are_one_error(tmp_path: Path, module, write: Callable[[Path], None]):
    write(tmp_path)
    with pytest.raises(QDeployError, match=f"data set {module.Dataset.name} in .* cannot be read") as error:
        module.Dataset(root=str(tmp_path), download=False).split("train")
    assert "damaged" in error.value.hint


def test_other_errors_are_no_damage(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), reading("x", tmp_path):
        raise ZeroDivisionError


def test_it_is_importable_without_pil():
    code = "import sys; import qdeploy.datasets._download; sys.exit('PIL' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("broken", [IncompleteRead(b"abc", 5), BadStatusLine("what?")])
def test_a_download_that_breaks_off_is_told(tmp_path: Path, broken: Exception):
    """As torchvision lets it through."""

    def fetch() -> None:
        raise broken

    with pytest.raises(QDeployError, match=r"x could not be downloaded: (.|\n)*missing in .*: file") as error:
        ensure_files("x", [tmp_path / "file"], True, fetch)
    assert "in the layout that docs/datasets.md shows" in error.value.hint
