"""What the container refuses, and that the same content gives the same bytes."""

from __future__ import annotations

import io
import random
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qdeploy import runner
from qdeploy.bundle import archive
from qdeploy.bundle.pack import unpack
from qdeploy.core.errors import QDeployError

Entries = list[tuple[zipfile.ZipInfo, bytes]]


def entries(bundle: Path) -> Entries:
    with zipfile.ZipFile(bundle) as file:
        return [(info, file.read(info)) for info in file.infolist()]


def write(path: Path, members: Entries) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for info, data in members:
            info.create_system = 3
            file.writestr(info, data, compress_type=info.compress_type)
    return path


def named(members: Entries, old: str, new: str) -> Entries:
    info, data = next((info, data) for info, data in members if info.filename == old)
    renamed = zipfile.ZipInfo(new, info.date_time)
    renamed.external_attr = info.external_attr
    return [(renamed, data) if i is info else (i, d) for i, d in members]


def added(members: Entries, name: str) -> Entries:
    return [*members, (zipfile.ZipInfo(name), b"x")]


def as_link(members: Entries) -> Entries:
    members[-1][0].external_attr = (stat.S_IFLNK | 0o777) << 16
    return [*members[:-1], (members[-1][0], b"/etc/passwd")]


def as_folder(members: Entries) -> Entries:
    members[-1][0].external_attr = (stat.S_IFDIR | 0o755) << 16
    return members


def bomb(members: Entries) -> Entries:
    members[-1][0].compress_type = zipfile.ZIP_DEFLATED
    return [*members[:-1], (members[-1][0], bytes(8 << 20))]


def oversized(members: Entries) -> Entries:
    return [*members[:-1], (members[-1][0], bytes(runner.MEMBERS["README.md"] + 1))]


ATTACKS: dict[str, Callable[[Entries], Entries]] = {
    "traversal": lambda m: named(m, "README.md", "../README.md"),
    "traversal added": lambda m: added(m, "../../evil.py"),
    "traversal by backslash": lambda m: added(m, "..\\evil.py"),
    "absolute": lambda m: named(m, "run.py", "/tmp/run.py"),
    "drive": lambda m: added(m, "C:\\run.py"),
    "folder in front": lambda m: named(m, "run.py", "sub/run.py"),
    "unknown file": lambda m: added(m, "sitecustomize.py"),
    "other case": lambda m: named(m, "run.py", "RUN.py"),
    "missing": lambda m: m[:-1],
    "link": as_link,
    "folder": as_folder,
    "bomb": bomb,
    "oversized": oversized,
}


def test_a_zip_forged_without_an_attack_is_accepted(bundle: Path, tmp_path: Path) -> None:
    """So what refuses the ones below is the attack."""
    assert write(tmp_path / "forged.zip", entries(bundle)).read_bytes() == bundle.read_bytes()


@pytest.mark.parametrize("attack", ATTACKS)
def test_malicious_zips_are_refused_and_leave_nothing(attack: str, bundle: Path, tmp_path: Path) -> None:
    forged = write(tmp_path / "forged.zip", ATTACKS[attack](entries(bundle)))
    target = tmp_path / "here" / "unpacked"
    with pytest.raises(QDeployError, match="is not a valid bundle"):
        unpack(forged, target)
    assert sorted(tmp_path.rglob("*")) == [forged]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused(bundle: Path, tmp_path: Path) -> None:
    members = entries(bundle)
    forged = write(tmp_path / "forged.zip", [*members, (zipfile.ZipInfo("run.py"), b"import os")])
    with pytest.raises(QDeployError, match=r"it also holds 'run\.py'"):
        unpack(forged, tmp_path / "unpacked")


def test_a_name_cut_at_a_nul_is_refused(bundle: Path, tmp_path: Path) -> None:
    """zipfile shows "README.md\\0.." as README.md; the file says otherwise."""
    forged = write(tmp_path / "forged.zip", named(entries(bundle), "README.md", "README.md_.."))
    forged.write_bytes(forged.read_bytes().replace(b"README.md_..", b"README.md\0.."))
    with pytest.raises(QDeployError, match=r"it holds 'README.md\\x00..' where README.md should be"):
        unpack(forged, tmp_path / "unpacked")


def test_damage_is_always_noticed(bundle: Path, tmp_path: Path) -> None:
    """Whatever bytes change, of the content or of the zip's own structures, the answer is a QDeployError."""
    whole, rng = bundle.read_bytes(), random.Random(0)
    directory = whole.index(b"PK\x01\x02")
    for trial in range(300):
        data = bytearray(whole)
        start = rng.choice([0, directory])
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(start, len(data))] ^= rng.randrange(1, 256)
        damaged = tmp_path / "damaged.zip"
        damaged.write_bytes(data[: rng.randrange(len(data))] if trial % 10 == 0 else data)
        if damaged.read_bytes() != whole:  # two changes may undo each other
            with pytest.raises(QDeployError):
                unpack(damaged, tmp_path / "unpacked")


def test_a_zip_is_what_zipfile_makes_of_the_same_members() -> None:
    """The layout is our own code; the standard library is the judge of it."""
    members = {"manifest.json": b"{}", "größe.npy": bytes(range(256)) * 300, "empty": b""}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            file.writestr(info, data)
    assert archive.archive(members) == buffer.getvalue()
    with zipfile.ZipFile(io.BytesIO(archive.archive(members))) as file:
        assert file.testzip() is None
        assert {name: file.read(name) for name in file.namelist()} == members


def test_no_bundle_needs_the_zip64_extension() -> None:
    assert sum(runner.MEMBERS.values()) < 2**32 - 2**16


def test_an_npz_does_not_depend_on_order_or_memory_layout() -> None:
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    b = np.array([1, 2], np.uint8)
    first = archive.npz({"a": a, "b": b})
    assert first == archive.npz({"b": b, "a": np.asfortranarray(a)})
    with np.load(io.BytesIO(first), allow_pickle=False) as loaded:
        assert sorted(loaded.files) == ["a", "b"]
        np.testing.assert_array_equal(loaded["a"], a)
        assert loaded["b"].dtype == np.uint8


def test_an_npz_refuses_pickled_objects() -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        archive.npz({"a": np.array([object()])})
