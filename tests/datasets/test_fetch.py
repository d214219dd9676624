from __future__ import annotations

import hashlib
import http.server
import threading
from pathlib import Path

import pytest

from qdeploy.datasets._fetch import fetch

CONTENT = b"what is downloaded" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A server on this machine with one file."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file").write_bytes(CONTENT)
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path / "served"))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/file"
        server.shutdown()


def test_the_file_arrives_whole(url: str, tmp_path: Path):
    target = tmp_path / "new" / "data.bin"
    fetch(url, target, size=len(CONTENT), sha256=SHA256)
    assert target.read_bytes() == CONTENT
    assert [file.name for file in target.parent.iterdir()] == ["data.bin"]


@pytest.mark.parametrize("wrong", [{"size": 1, "sha256": SHA256}, {"size": len(CONTENT), "sha256": "0" * 64}])
def test_another_file_leaves_the_old_one(url: str, tmp_path: Path, wrong):
    target = tmp_path / "new" / "data.bin"
    target.parent.mkdir()
    target.write_bytes(b"old")
    with pytest.raises(OSError, match=f"{len(CONTENT)} bytes, sha256 {SHA256}; expected"):
        fetch(url, target, **wrong)
    assert [file.read_bytes() for file in target.parent.iterdir()] == [b"old"]


def test_what_is_not_there_leaves_nothing(url: str, tmp_path: Path):
    with pytest.raises(OSError, match="404"):
        fetch(f"{url}/other", tmp_path / "new" / "data.bin")
    assert not list((tmp_path / "new").iterdir())
