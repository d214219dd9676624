from __future__ import annotations

import contextlib
import hashlib
import http.server
import importlib
import threading
from pathlib import Path

import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.datasets import _fetch, sequences
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


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"size": len(CONTENT) + 1}, f"{len(CONTENT)} bytes, sha256 {SHA256}; expected"),
        ({"size": len(CONTENT), "sha256": "0" * 64}, f"{len(CONTENT)} bytes, sha256 {SHA256}; expected"),
        ({"size": 1, "sha256": SHA256}, "more than 1 bytes"),
        ({"size": len(CONTENT) - 1}, f"more than {len(CONTENT) - 1} bytes"),
    ],
)
def test_another_file_leaves_the_old_one(url: str, tmp_path: Path, wrong, said):
    target = tmp_path / "new" / "data.bin"
    target.parent.mkdir()
    target.write_bytes(b"old")
    with pytest.raises(OSError, match=said):
        fetch(url, target, **wrong)
    assert [file.read_bytes() for file in target.parent.iterdir()] == [b"old"]


def test_without_a_size_there_is_a_limit(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_fetch, "CHUNK_BYTES", 4000)
    monkeypatch.setattr(_fetch, "MOST_BYTES", len(CONTENT))
    fetch(url, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    monkeypatch.setattr(_fetch, "MOST_BYTES", len(CONTENT) - 1)
    with pytest.raises(OSError, match=f"more than {len(CONTENT) - 1} bytes"):
        fetch(url, tmp_path / "new" / "data.bin")
    assert not list((tmp_path / "new").iterdir())


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch):
    """A server whose answers break the rules."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Broken(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            match self.path:
                case "/short":
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
                case "/chunks":
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nshort")
                case "/status":
                    self.wfile.write(b"what is that?\r\n\r\n")
                case "/endless":
                    self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
                    with contextlib.suppress(OSError):  # whoever asked is gone
                        while True:
                            self.wfile.write(bytes(2**16))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("short", "broke off after 5 of 100 bytes|IncompleteRead"),
        ("chunks", "IncompleteRead"),
        ("status", "BadStatusLine"),
        ("endless", "more than 100 bytes"),
    ],
)
def test_a_broken_answer_leaves_nothing(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page, said):
    monkeypatch.setattr(_fetch, "MOST_BYTES", 100)
    with pytest.raises(OSError, match=said):
        fetch(f"{broken}/{page}", tmp_path / "new" / "data.bin")
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("page", ["short", "chunks", "status", "endless"])
def test_a_data_set_tells_of_a_broken_answer(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page):
    monkeypatch.setattr(sequences, "URL", f"{broken}/{page}")
    with pytest.raises(QDeployError, match=r"sequences could not be downloaded: .*(.|\n)*missing in .*Video.txt"):
        sequences.Dataset(root=str(tmp_path)).split("train")
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_what_is_not_there_leaves_nothing(url: str, tmp_path: Path):
    with pytest.raises(OSError, match="404"):
        fetch(f"{url}/other", tmp_path / "new" / "data.bin")
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    ("name", "missing"),
    [("imdb", "aclImdb_v1.tar.gz"), ("sequences", "Video.txt"), ("super_resolution", "t1.bmp, t2.bmp")],
)
def test_without_a_network_a_data_set_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, missing: str
):
    module = importlib.import_module(f"qdeploy.datasets.{name}")
    monkeypatch.setattr(module, "URL", f"http://127.0.0.1:9/{Path(module.URL).name}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(QDeployError, match=rf"Data set {name} could not be downloaded(.|\n)*{missing}") as error:
        module.Dataset(root=str(tmp_path)).split("train")
    assert "data.root" in error.value.hint
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_images_are_downloaded_one_by_one(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, super_resolution_root: Path
):
    """As bitmaps, under the names of their source; their pixels are checked together."""
    from PIL import Image

    from qdeploy.datasets import super_resolution

    served = tmp_path / "served" / "Test" / "Set5"
    served.mkdir(parents=True)
    for name in super_resolution.NAMES["Set5"]:
        with Image.open(super_resolution_root / "sr" / "Set5" / f"{name}.webp") as image:
            image.save(served / f"{name}_GT.bmp")
    monkeypatch.setattr(super_resolution, "URL", url.removesuffix("file"))
    raw, _ = super_resolution.Dataset(root=str(tmp_path / "data")).split("evaluation")
    assert len(raw) == 5
    assert sorted(file.name for file in (tmp_path / "data").rglob("*.*"))[0] == "baby.bmp"
