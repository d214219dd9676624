"""A bundle is the same bytes for the same content, its digests are right, and it contradicts nothing in it."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdeploy import runner
from qdeploy.bundle import manifest
from qdeploy.bundle.archive import archive
from qdeploy.bundle.pack import pack, unpack
from qdeploy.core.errors import QDeployError


def test_packing_twice_gives_the_same_bytes(contents: dict[str, Any], bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "again" / "ptq-int8.qdeploy.zip"
    arrays = {key: np.asfortranarray(value) for key, value in reversed(contents["golden"].items())}
    digest = pack(path, **{**contents, "golden": arrays})
    assert path.read_bytes() == bundle.read_bytes()
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() == runner.read_bundle(path)["sha256"]
    assert list(path.parent.iterdir()) == [path]


def test_another_process_another_day_gives_the_same_bytes(
    contents: dict[str, Any], bundle: Path, tmp_path: Path
) -> None:
    """In a new interpreter with other hash seeds, time zone, locale, file permissions and clock."""
    np.savez(tmp_path / "golden.npz", **contents["golden"])
    (tmp_path / "model.onnx").write_bytes(contents["model"])
    plain = {key: value for key, value in contents.items() if key not in ("golden", "model")}
    (tmp_path / "rest.json").write_text(json.dumps(plain))
    script = (
        "import json, os, sys, time, numpy as np; from pathlib import Path; from qdeploy.bundle.pack import pack\n"
        "os.umask(0o077); now = time.time; time.time = lambda: now() + 1e8\n"
        "here = Path(sys.argv[1]); rest = json.loads((here / 'rest.json').read_text())\n"
        "with np.load(here / 'golden.npz') as golden:\n"
        "    pack(here / 'b.zip', model=(here / 'model.onnx').read_bytes(), golden=dict(golden), **rest)\n"
        "assert 'torch' not in sys.modules, 'bundle imports torch'\n"
    )
    variables = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env=variables)
    assert (tmp_path / "b.zip").read_bytes() == bundle.read_bytes()


def test_members_are_dated_ordered_and_plain(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as file:
        infos = file.infolist()
    assert [i.filename for i in infos] == ["manifest.json", "model.onnx", "golden.npz", "run.py", "README.md"]
    for info in infos:
        assert info.date_time == (1980, 1, 1, 0, 0, 0)
        assert info.external_attr >> 16 == stat.S_IFREG | 0o644
        assert (info.compress_type, info.create_system) == (zipfile.ZIP_STORED, 3)


def test_every_digest_is_right(bundle: Path, tmp_path: Path) -> None:
    found = unpack(bundle, tmp_path / "new" / "folder")
    files = {path.name: path.read_bytes() for path in (tmp_path / "new" / "folder").iterdir()}
    assert set(found.files) == set(files) - {"manifest.json"}
    for name, digest in found.files.items():
        assert hashlib.sha256(files[name]).hexdigest() == digest
    assert files["manifest.json"] == found.to_json()


def test_run_py_is_the_runner(bundle: Path, repository: Path) -> None:
    with zipfile.ZipFile(bundle) as file:
        assert file.read("run.py") == (repository / "qdeploy" / "runner.py").read_bytes()


def test_the_runner_accepts_it(bundle: Path, contents: dict[str, Any]) -> None:
    read = runner.read_bundle(bundle)
    assert read["model"] == contents["model"]
    np.testing.assert_array_equal(read["golden"]["output.output"], contents["golden"]["output.output"])
    result = runner.selftest(bundle)
    assert (result["passed"], result["samples"], result["comparison"]) == (True, 8, "exact")


def test_nothing_says_when_where_or_how_fast(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as file:
        text = (file.read("manifest.json") + file.read("README.md")).decode()
    assert not re.search(r"\b20\d\d-\d\d|\d:\d\d:\d\d|latency|p50|millisecond|\b\d+(\.\d+)? ?ms\b", text)
    assert str(Path.home()) not in text


def test_a_changed_file_is_refused(bundle: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(bundle) as source:
        members = {name: source.read(name) for name in source.namelist()}
    members["run.py"] = members["run.py"].replace(b"import argparse", b"import antigrav")
    forged = tmp_path / "forged.zip"
    forged.write_bytes(archive(members))
    with pytest.raises(QDeployError, match=r"run\.py is not the file that the bundle was built with"):
        unpack(forged, tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()


def test_unpacking_over_a_link_does_not_write_through_it(bundle: Path, tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    victim.write_text("untouched")
    folder.mkdir()
    (folder / "run.py").symlink_to(victim)
    unpack(bundle, folder)
    assert victim.read_text() == "untouched"
    assert not (folder / "run.py").is_symlink()


def test_unpacking_onto_a_file_is_an_error(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QDeployError, match="is a file, not a folder"):
        unpack(bundle, tmp_path / "file")


def test_a_float_bundle_without_measurements(contents: dict[str, Any], tmp_path: Path) -> None:
    bare = {key: value for key, value in contents.items() if key not in ("metric", "coverage", "parity")}
    path = tmp_path / "fp32.qdeploy.zip"
    pack(path, **{**bare, "name": "fp32", "quantization": {}, "comparison": "close", "tolerance": 1e-5})
    found = manifest.read(path)
    assert (found.metric, found.coverage, found.parity) == (None, None, None)
    assert runner.selftest(path)["tolerance"] == 1e-5


GOLDEN_IN, GOLDEN_OUT = "input.input", "output.output"
WRONG = {
    "golden is missing an output": (lambda c: c["golden"].pop(GOLDEN_OUT), r"output\.output\.npy is missing"),
    "golden has a stranger": (lambda c: c["golden"].update(x=np.zeros(8)), "it also holds 'x.npy'"),
    "golden is preprocessed": (
        lambda c: c["golden"].update({GOLDEN_IN: c["golden"][GOLDEN_IN].astype(np.float32)}),
        r"golden\.npz: input\.input is float32",
    ),
    "golden has another shape": (
        lambda c: c["golden"].update({GOLDEN_IN: c["golden"][GOLDEN_IN][:, :7]}),
        r"input\.input is uint8 \[8, 7, 8\], not uint8 \[8, 8, 8\]",
    ),
    "golden counts differ": (
        lambda c: c["golden"].update({GOLDEN_OUT: c["golden"][GOLDEN_OUT][:5]}),
        r"input\.input is uint8 \[8, 8, 8\], not uint8 \[5, 8, 8\]",
    ),
    "golden is empty": (
        lambda c: c.update(golden={key: value[:0] for key, value in c["golden"].items()}),
        r"golden\.samples",
    ),
    "another input name": (lambda c: c["inputs"][0].update(name="image"), "inputs .* are not the model's"),
    "another output type": (lambda c: c["outputs"][0].update(dtype="int64"), "outputs .* are not the model's"),
    "another output shape": (lambda c: c["outputs"][0].update(shape=["batch", 7]), "outputs .* are not the model's"),
    "a field that is no JSON number": (lambda c: c["quantization"].update(scale=float("inf")), "not JSON compliant"),
    "a version is missing": (lambda c: c["versions"].pop("onnxruntime"), r"versions\.onnxruntime is missing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_contradictions_are_refused_and_nothing_is_written(case: str, contents: dict[str, Any], tmp_path: Path) -> None:
    change, message = WRONG[case]
    changed = copy.deepcopy(contents)
    change(changed)
    with pytest.raises(QDeployError, match=message):
        pack(tmp_path / "b.qdeploy.zip", **changed)
    assert not list(tmp_path.iterdir())
