"""Atomic writes: the old content or the new, never half of it."""

import hashlib
import json
import math
import os
from pathlib import Path

import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.core.files import sha256, write_atomic, write_json


def test_writes_bytes_and_text_into_new_folders(tmp_path):
    write_atomic(tmp_path / "a" / "b" / "file.bin", b"\x00\xff")
    assert (tmp_path / "a" / "b" / "file.bin").read_bytes() == b"\x00\xff"
    write_atomic(tmp_path / "text", "größe\n")
    assert (tmp_path / "text").read_bytes() == "größe\n".encode()


def test_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file"
    for content in (b"a long old content", b"new"):
        write_atomic(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_is_as_readable_as_any_other_file(tmp_path):
    (tmp_path / "ordinary").write_bytes(b"")
    write_atomic(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["disk full", "interrupted"])
def test_a_failing_write_leaves_the_old_content(tmp_path, monkeypatch, step, error):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail) if step == "fsync" else patch.setattr(Path, "replace", fail)
        with pytest.raises(type(error)):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_or_a_device_in_the_way_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("taken", "pipe"):
        with pytest.raises(QDeployError, match=f"{name} is no file"):
            write_atomic(tmp_path / name, b"new")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "pipe", tmp_path / "taken"]
    assert (tmp_path / "pipe").is_fifo()


def test_json_is_json(tmp_path):
    path = tmp_path / "value.json"
    value = {"name": "größe", "values": [1, 2.5, None, True]}
    write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value
    assert path.read_bytes().endswith(b"}\n")
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": math.nan})
    assert json.loads(path.read_text(encoding="utf-8")) == value


def test_sha256_is_of_the_bytes(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"qdeploy" * 1000)
    assert sha256(path) == hashlib.sha256(b"qdeploy" * 1000).hexdigest()
