"""run.py works where there is nothing but Python, numpy and onnxruntime."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from qdeploy.bundle.pack import unpack


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An isolated environment's interpreter. numpy and onnxruntime are linked into it, which is all it can import."""
    folder = tmp_path_factory.mktemp("device")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for module in (np, onnxruntime):
        source = Path(module.__file__).parent
        (packages / source.name).symlink_to(source)
        for libraries in source.parent.glob(f"{source.name}.libs"):  # the shared libraries of numpy's wheel
            (packages / libraries.name).symlink_to(libraries)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def device(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the bundle was unpacked into."""
    folder = tmp_path_factory.mktemp("unpacked")
    unpack(bundle, folder)
    return folder


def run(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-I", "run.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_the_environment_is_as_bare_as_it_claims(python: Path) -> None:
    code = "import importlib.util as u; print([m for m in ('qdeploy', 'onnx', 'torch', 'pydantic') if u.find_spec(m)])"
    result = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_selftest_passes(python: Path, device: Path) -> None:
    result = run(python, device, "selftest", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["passed"], report["samples"], report["differing"]) == (True, 8, 0)


def test_selftest_notices_a_changed_file(python: Path, bundle: Path, tmp_path: Path) -> None:
    unpack(bundle, tmp_path)
    model = tmp_path / "model.onnx"
    model.write_bytes(model.read_bytes() + b"\0")
    result = run(python, tmp_path, "selftest")
    assert result.returncode == 2
    assert "model.onnx is not the file that the bundle was built with" in result.stderr


def test_predict_gives_the_golden_answers(python: Path, device: Path, contents: dict[str, Any], tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", contents["golden"]["input.input"])
    result = run(python, device, "predict", str(tmp_path / "raw.npy"), "--json", "--top", "1")
    assert result.returncode == 0, result.stderr
    predicted = [sample[0]["output"] for sample in json.loads(result.stdout)]
    np.testing.assert_array_equal(np.float32(predicted), contents["golden"]["output.output"].max(axis=1))


def test_bench_measures(python: Path, device: Path) -> None:
    result = run(python, device, "bench", "--json", "--threads", "1", "--seconds", "0.2")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["name"] == "ptq-int8"
    assert "withheld" in report or report["p50_ms"] > 0
