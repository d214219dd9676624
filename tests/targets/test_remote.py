from __future__ import annotations

import hashlib

import pytest

from qdeploy import runner
from qdeploy.core.errors import QDeployError
from qdeploy.targets import _remote
from tests.bundles import read_members, unpack, write_bundle

KNOWN = {"python": _remote.PYTHON, "cpus": (r"\d+", "1")}


def test_options_stand_behind_a_question_mark():
    split = _remote.split_options
    assert split("ssh", "pi@host:22", KNOWN) == ("pi@host:22", {})
    assert split("ssh", "host?cpus=2&python=~/a%20b%26c/python3", KNOWN) == (
        "host", {"cpus": "2", "python": "~/a b&c/python3"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("host?cpu=1", "no option 'cpu'"),
        ("host?cpus", "'cpus' of the target 'ssh' cannot be ''"),
        ("host?cpus=x", "cannot be 'x'"),
        ("host?cpus=1&cpus=2", "is given twice"),
        ("host?python=-c", "cannot be '-c'"),
        ("host?python=a%0Ab", "cannot be"),
    ],
)
def test_other_options_are_refused(text, message):
    with pytest.raises(QDeployError, match=message) as caught:
        _remote.split_options("ssh", text, KNOWN)
    assert caught.value.hint


def test_a_zip_is_sent_as_it_is_and_a_folder_as_its_zip(tmp_path):
    zipped = write_bundle(tmp_path)
    name, data = _remote.bundle_file(zipped)
    assert data == zipped.read_bytes()
    assert name == f"{hashlib.sha256(data).hexdigest()}.qdeploy.zip"
    folder = unpack(zipped, tmp_path / "a folder")
    sent = tmp_path / "sent.zip"
    sent.write_bytes(_remote.bundle_file(folder)[1])
    assert runner.read_bundle(sent)["model"] == runner.read_bundle(folder)["model"]
    assert read_members(sent)[1]["run.py"] == (folder / "run.py").read_bytes()


def test_what_is_no_bundle_is_not_sent(tmp_path):
    with pytest.raises(QDeployError, match="There is no bundle"):
        _remote.bundle_file(tmp_path / "missing.zip")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b'{"error": "no pip."}', r"^host: no pip\.\n"),
        (b"Traceback\n  SyntaxError: x", "does not run qdeploy's script. SyntaxError: x"),
        (b"", "does not run qdeploy's script."),
        (b"7", "does not run qdeploy's script. 7"),
    ],
)
def test_a_python_that_was_not_found_is_an_error(said, message):
    with pytest.raises(QDeployError, match=message) as caught:
        _remote.found_python(said, "host", "do this")
    assert caught.value.hint == "do this"


def test_the_last_line_is_what_was_found():
    assert _remote.found_python(b'a warning\n{"python": "/p", "numpy": "1"}\n', "host", "") == "/p"
