"""The runner on bundles: reading and refusing them, the golden self-test, predict, and the command line."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qdeploy import runner
from tests import bundles
from tests.bundles import write_bundle


@pytest.fixture(scope="module")
def integer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("integer"))


@pytest.fixture(scope="module")
def unpacked(integer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundles.unpack(integer, tmp_path_factory.mktemp("unpacked"))


def run_py(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The run.py of an unpacked bundle, as a person without qdeploy calls it (from elsewhere, isolated)."""
    command = [sys.executable, "-I", str(folder / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")


def one_line_error(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 2, result
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


# --------------------------------------------------------------------------------------------------------- reading


def test_a_zip_and_its_folder_read_alike(integer, unpacked):
    packed, folder = runner.read_bundle(integer), runner.read_bundle(str(unpacked))
    assert packed["model"] == folder["model"]
    assert packed["manifest"]["inputs"] == folder["manifest"]["inputs"]
    assert set(packed["golden"]) == {"input.input", "output.output"}
    assert all(np.array_equal(packed["golden"][name], folder["golden"][name]) for name in packed["golden"])
    assert packed["sha256"] == hashlib.sha256(integer.read_bytes()).hexdigest()


Members = dict[str, bytes]


def repacked(change: Callable[[dict[str, Any], Members], None]) -> Callable[[Path, Path], None]:
    """A damage that changes members (and so their digests, which stay right)."""

    def apply(source: Path, target: Path) -> None:
        manifest, files = bundles.read_members(source)
        change(manifest, files)
        bundles.write_members(target, manifest, files)

    return apply


def appended(name: str, data: bytes) -> Callable[[Path, Path], None]:
    """A damage that adds one member to the zip, behind the manifest's back."""

    def apply(source: Path, target: Path) -> None:
        shutil.copy(source, target)
        with zipfile.ZipFile(target, "a") as archive:
            archive.writestr(name, data)

    return apply


def tampered(source: Path, target: Path) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data[:-1] + bytes([data[-1] ^ 1]) if name == "model.onnx" else data)


def truncated(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes()[:-200])


def corrupted(source: Path, target: Path) -> None:
    data = bytearray(source.read_bytes())
    data[200:210] = b"\0" * 10
    target.write_bytes(data)


def pickled(manifest: dict[str, Any], files: Members) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **{"input.input": np.array([{}]), "output.output": np.zeros((1, 10))})
    files["golden.npz"] = buffer.getvalue()


def bare_pickle(manifest: dict[str, Any], files: Members) -> None:
    import pickle

    files["golden.npz"] = pickle.dumps({"input.input": 1})


def without_output(manifest: dict[str, Any], files: Members) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **{"input.input": np.zeros((8, 8, 8), np.uint8)})
    files["golden.npz"] = buffer.getvalue()


DAMAGES = {
    "tampered": (tampered, "model.onnx is not the file that the bundle was built with"),
    "zip slip": (appended("../../evil.py", b"x"), "unsafe file name '../../evil.py'"),
    "absolute": (appended("/etc/cron.d/evil", b"x"), "unsafe file name"),
    "unlisted": (appended("extra.txt", b"x"), "does not list the member .'extra.txt'"),
    "pickle": (repacked(pickled), "golden.npz cannot be read: Object arrays"),
    "bare pickle": (repacked(bare_pickle), "golden.npz cannot be read"),
    # The end of golden.npz, a zip itself, may now pass for the end of the whole.
    "truncated": (truncated, "is not a (readable|valid) bundle"),
    "corrupted": (corrupted, "is not a readable bundle|is not JSON"),
    "no zip": (lambda _, target: target.write_bytes(b"hello"), "is not a readable bundle"),
    "newer schema": (
        repacked(lambda manifest, _: manifest.update(schema="qdeploy.bundle/2")),
        "has schema 'qdeploy.bundle/2', this runner reads 'qdeploy.bundle/1'",
    ),
    "no inputs": (repacked(lambda manifest, _: manifest.pop("inputs")), "has no valid 'inputs'"),
    "no model": (repacked(lambda _, files: files.pop("model.onnx")), "lists no model.onnx"),
    "no output": (repacked(without_output), "lacks 'output.output'"),
    "lists a path": (repacked(lambda _, files: files.update({"a/../b": b""})), "unsafe file name"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_bundle_is_one_clear_error(name, integer, tmp_path):
    damage, message = DAMAGES[name]
    target = tmp_path / "bad.qdeploy.zip"
    damage(integer, target)
    with pytest.raises(runner.RunnerError, match=message) as caught:
        runner.read_bundle(target)
    assert "\n" not in str(caught.value)
    assert "bad.qdeploy.zip" in str(caught.value)
    assert list(tmp_path.iterdir()) == [target]  # nothing was extracted


def test_absurd_sizes_are_refused_before_they_are_read(integer, unpacked, monkeypatch):
    monkeypatch.setitem(runner.MEMBER_LIMITS, "model.onnx", 100)
    for path in (integer, unpacked):
        with pytest.raises(runner.RunnerError, match=r"model.onnx has [\d,]+ bytes"):
            runner.read_bundle(path)


def test_a_golden_archive_that_unpacks_to_too_much_is_refused(integer, monkeypatch, tmp_path):
    def bomb(manifest: dict[str, Any], files: Members) -> None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{"input.input": np.zeros((8, 1 << 20)), "output.output": np.zeros((8, 10))})
        files["golden.npz"] = buffer.getvalue()

    target = tmp_path / "bomb.qdeploy.zip"
    repacked(bomb)(integer, target)
    monkeypatch.setitem(runner.MEMBER_LIMITS, "golden.npz", 1 << 20)
    with pytest.raises(runner.RunnerError, match="absurd size"):
        runner.read_bundle(target)


def test_a_missing_bundle_or_member_is_named(tmp_path, unpacked):
    with pytest.raises(runner.RunnerError, match="There is no bundle"):
        runner.read_bundle(tmp_path / "no.qdeploy.zip")
    folder = shutil.copytree(unpacked, tmp_path / "copy")
    (folder / "golden.npz").unlink()
    with pytest.raises(runner.RunnerError, match=r"it lacks golden.npz"):
        runner.read_bundle(folder)


# ------------------------------------------------------------------------------------------------------- self-test


@pytest.mark.parametrize("method", ["float32", "ptq"])
def test_the_selftest_passes_where_the_bundle_was_built(method, tmp_path):
    result = runner.selftest(write_bundle(tmp_path, method=method), threads=1)
    assert result["passed"]
    assert (result["samples"], result["values"], result["differing"]) == (8, 80, 0)


def shifted(step: float) -> Callable[[dict[str, Any], Members], None]:
    """Move one golden output by ``step``."""

    def change(manifest: dict[str, Any], files: Members) -> None:
        with np.load(io.BytesIO(files["golden.npz"])) as archive:
            arrays = {name: archive[name] for name in archive.files}
        arrays["output.output"][3, 4] += np.float32(step)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        files["golden.npz"] = buffer.getvalue()

    return change


@pytest.mark.parametrize(
    ("method", "step", "passed"),
    [("ptq", 1e-5, False), ("float32", 1e-5, True), ("float32", 1e-3, False), ("float32", np.nan, False)],
)
def test_exact_means_every_bit_and_close_means_the_tolerance(method, step, passed, tmp_path):
    target = tmp_path / "changed.qdeploy.zip"
    repacked(shifted(step))(write_bundle(tmp_path, method=method), target)
    result = runner.selftest(target, threads=1)
    assert result["passed"] is passed
    assert result["differing"] == (0 if passed else 1)


def test_a_model_with_a_fixed_batch_is_run_in_pieces(integer, tmp_path):
    def fix(manifest: dict[str, Any], files: Members) -> None:
        model = onnx.load_model_from_string(files["model.onnx"])
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 3
        files["model.onnx"] = model.SerializeToString()
        manifest["inputs"][0]["shape"][0] = manifest["outputs"][0]["shape"][0] = 3

    target = tmp_path / "fixed.qdeploy.zip"
    repacked(fix)(integer, target)
    assert runner.selftest(target, threads=1)["passed"]
    with pytest.raises(runner.RunnerError, match="always 3"):
        runner.bench_feeds(runner.read_bundle(target), 1)


# ---------------------------------------------------------------------------------------------------- command line


def test_selftest_prints_one_line_and_says_by_its_exit_code_whether_it_passed(unpacked, integer, tmp_path):
    result = run_py(unpacked, "selftest")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "ptq-int8: 8 golden samples agree bit for bit (80 values)\n"
    target = tmp_path / "wrong.qdeploy.zip"
    repacked(shifted(0.5))(integer, target)
    result = run_py(unpacked, "selftest", "--bundle", str(target))
    assert result.returncode == 1
    assert result.stdout.startswith("ptq-int8: FAILED: 1 of 80 golden values differ, by up to 0.5")
    assert json.loads(run_py(unpacked, "selftest", "--bundle", str(target), "--json").stdout)["differing"] == 1


def test_errors_are_one_line_and_exit_code_2(unpacked, tmp_path):
    assert "There is no bundle" in one_line_error(run_py(unpacked, "bench", "--bundle", str(tmp_path / "x.zip")))
    assert "0 threads" in one_line_error(run_py(unpacked, "bench", "--threads", "0"))
    alone = shutil.copy(unpacked / "run.py", tmp_path / "run.py")
    assert "--bundle" in one_line_error(run_py(Path(alone).parent, "selftest"))


def test_bench_measures_and_withholds_the_times_of_an_emulated_cpu(unpacked):
    result = run_py(unpacked, "bench", "--threads", "1", "--batch", "3", "--seconds", "0.1", "--json")
    measured = json.loads(result.stdout)
    assert (measured["threads"], measured["batch"]) == (1, 3)
    assert 0 < measured["p50_ms"] <= measured["p90_ms"] <= measured["p99_ms"]
    assert measured["calls"] >= 5
    command = [sys.executable, str(unpacked / "run.py"), "bench", "--seconds", "0.1"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env={"QDEPLOY_EMULATOR": "qemu"})
    assert "no times: the CPU is emulated (qemu)" in result.stdout
    assert "p50" not in result.stdout


def test_predict_reads_arrays_and_images(unpacked, integer, tmp_path):
    from PIL import Image

    golden = runner.read_bundle(integer)["golden"]
    raw, outputs = golden["input.input"], golden["output.output"]
    np.save(tmp_path / "all.npy", raw)
    np.save(tmp_path / "one.npy", raw[2].astype(np.int64))  # another type with the same values
    np.savez(tmp_path / "all.npz", raw)
    Image.fromarray(raw[2]).save(tmp_path / "one.png")
    for name, expected in (
        ("all.npy", outputs),
        ("all.npz", outputs),
        ("one.npy", outputs[2:3]),
        ("one.png", outputs[2:3]),
    ):
        ranked = json.loads(run_py(unpacked, "predict", str(tmp_path / name), "--json", "--top", "2").stdout)
        assert [classes[0]["index"] for classes in ranked] == expected.argmax(axis=1).tolist()
        assert [classes[0]["output"] for classes in ranked] == expected.max(axis=1).tolist()
        assert all(len(classes) == 2 for classes in ranked)
    table = run_py(unpacked, "predict", str(tmp_path / "one.npy")).stdout.splitlines()
    assert table[0].split() == ["sample", "class", "output", "softmax"]
    assert table[1].split()[1] == str(outputs[2].argmax())


def test_predict_refuses_what_is_no_sample(unpacked, tmp_path):
    np.save(tmp_path / "shape.npy", np.zeros((9, 8), np.uint8))
    np.save(tmp_path / "values.npy", np.full((8, 8), 0.5))
    np.save(tmp_path / "pickle.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "text.png").write_text("no image")
    for name, message in (
        ("shape.npy", "has shape [9, 8]; a raw sample has shape [8, 8]"),
        ("values.npy", "the raw type uint8 cannot represent"),
        ("pickle.npy", "cannot be read"),
        ("text.png", "cannot be read"),
        ("missing.npy", "cannot be read"),
    ):
        assert message in one_line_error(run_py(unpacked, "predict", str(tmp_path / name)))


def test_an_image_without_pillow_is_a_clear_error(unpacked, tmp_path):
    script = str(unpacked / "run.py")
    code = f"import sys, runpy; sys.modules['PIL'] = None; runpy.run_path({script!r}, run_name='__main__')"
    command = [sys.executable, "-c", code, "predict", str(tmp_path / "one.png")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "needs Pillow, which is not installed" in one_line_error(result)


def test_without_onnxruntime_it_says_what_to_install(unpacked):
    script = str(unpacked / "run.py")
    code = f"import sys, runpy; sys.modules['onnxruntime'] = None; runpy.run_path({script!r}, run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code, "selftest"], capture_output=True, text=True, check=False)
    assert "pip install numpy onnxruntime" in one_line_error(result)
