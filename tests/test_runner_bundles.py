"""The runner on bundles: reading and refusing them, the golden self-test, predict, and the command line."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import struct
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
from qdeploy.bundle import manifest as manifest_module
from qdeploy.bundle.archive import archive, npz
from qdeploy.bundle.pack import unpack
from qdeploy.core.errors import QDeployError
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
    """A file that its digest in the manifest does not know, in a zip that is otherwise right."""
    manifest, files = bundles.read_members(source)
    files["model.onnx"] = files["model.onnx"][:-1] + bytes([files["model.onnx"][-1] ^ 1])
    target.write_bytes(archive({"manifest.json": json.dumps(manifest).encode(), **files}))


def written_by_zipfile(compression: int, comment: bytes = b"") -> Callable[[Path, Path], None]:
    """The same members as another program would zip them."""

    def apply(source: Path, target: Path) -> None:
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
            new.comment = comment

    return apply


def reordered(source: Path, target: Path) -> None:
    manifest, files = bundles.read_members(source)
    target.write_bytes(archive({**files, "manifest.json": json.dumps(manifest).encode()}))


def edited(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    return lambda source, target: target.write_bytes(change(source.read_bytes())) and None


def corrupted(data: bytes) -> bytes:
    middle = data.index(b"PK\3\4", 4) + 1000
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def redated(data: bytes) -> bytes:
    """The directory gives the last file another time than the header in front of it."""
    start = data.rindex(b"PK\1\2") + 12
    return data[:start] + b"\1" + data[start + 1 :]


def boast(data: bytes) -> bytes:
    """The header of model.onnx claims more bytes than the file has."""
    start = data.index(b"PK\3\4", 4)
    return data[: start + 18] + struct.pack("<2I", 1 << 30, 1 << 30) + data[start + 26 :]


def golden(make: Callable[[dict[str, np.ndarray]], bytes]) -> Callable[[Path, Path], None]:
    """A golden.npz that is ``make`` of its arrays, with the right digest."""

    def change(manifest: dict[str, Any], files: Members) -> None:
        with np.load(io.BytesIO(files["golden.npz"])) as loaded:
            files["golden.npz"] = make(dict(loaded))

    return repacked(change)


def saved(arrays: dict[str, Any], save: Callable[..., None] = np.savez) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def member(header: dict[str, Any], content: bytes = b"") -> Callable[[dict[str, np.ndarray]], bytes]:
    """A golden.npz in which the outputs have the .npy header ``header``."""

    def make(arrays: dict[str, np.ndarray]) -> bytes:
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, header)
        buffer.write(content)
        with zipfile.ZipFile(io.BytesIO(npz(arrays))) as old:
            first = old.read("input.input.npy")
        return archive({"input.input.npy": first, "output.output.npy": buffer.getvalue()})

    return make


FLOATS = {"descr": "<f4", "fortran_order": False, "shape": (8, 10)}

DAMAGES = {
    "tampered": (tampered, "model.onnx is not the file that the bundle was built with"),
    "zip slip": (appended("../../evil.py", b"x"), "it also holds '../../evil.py'"),
    "unlisted": (appended("extra.txt", b"x"), "it also holds 'extra.txt'"),
    "deflated": (written_by_zipfile(zipfile.ZIP_DEFLATED), "manifest.json is compressed in it"),
    "repacked": (written_by_zipfile(zipfile.ZIP_STORED), "manifest.json has another header"),
    "reordered": (reordered, "it holds 'model.onnx' where manifest.json should be"),
    "bytes in front": (edited(lambda data: b"#!/bin/sh\n" + data), "something stands in front of it"),
    "bytes behind": (edited(lambda data: data + b"x"), "its end is not what belongs behind its files"),
    "a comment": (edited(lambda data: data[:-2] + b"\1\0x"), "its end is not what belongs behind its files"),
    "a directory that says otherwise": (edited(redated), "its end is not what belongs behind its files"),
    "truncated": (edited(lambda data: data[:-200]), "its end is not what belongs behind its files"),
    "cut in the model": (edited(lambda data: data[: len(data) // 2]), "it ends within model.onnx"),
    "cut in a name": (edited(lambda data: data[:35]), "it holds 'manif' where manifest.json should be"),
    "corrupted": (edited(corrupted), "model.onnx is damaged: its checksum"),
    "a size that is not there": (edited(boast), "it ends within model.onnx"),
    "no zip": (lambda _, target: target.write_bytes(b"hello"), "it is not a zip"),
    "nothing": (lambda _, target: target.touch(), "it is not a zip"),
    "pickle": (golden(lambda arrays: npz_of_objects()), "input.input is not stored as a plain array"),
    "bare pickle": (golden(pickle.dumps), "golden.npz: it is not a zip"),
    "golden by numpy": (golden(saved), "golden.npz: input.input.npy has another header"),
    "golden compressed": (golden(lambda a: saved(a, np.savez_compressed)), "input.input.npy is compressed in it"),
    "no output": (golden(lambda a: npz({"input.input": a["input.input"]})), "output.output.npy is missing"),
    "golden float64": (golden(lambda a: npz({k: v * 1.0 for k, v in a.items()})), r"input.input is float64 \[8, 8, 8"),
    "fewer outputs": (golden(lambda a: npz({k: v[: 9 - v.ndim] for k, v in a.items()})), r"input.input is uint8 \[6,"),
    "raw values out of range": (golden(lambda a: npz({**a, "input.input": a["input.input"] + 1})), "from 1 to 17, not"),
    "golden bomb": (golden(member({**FLOATS, "shape": (8, 1 << 50)})), "has not the size that its header claims"),
    "golden of nothing": (golden(member({**FLOATS, "shape": (8, 0)})), r"output.output is float32 \[8, 0\]"),
    "golden transposed": (golden(member({**FLOATS, "fortran_order": True}, bytes(320))), "not stored as a plain array"),
    "golden big-endian": (golden(member({**FLOATS, "descr": ">f4"}, bytes(320))), "not stored as a plain array"),
    "golden with more": (golden(member(FLOATS, bytes(324))), "has not the size that its header claims"),
    "golden of what": (golden(member({**FLOATS, "descr": "<q9"})), "output.output is no array"),
    "newer schema": (
        repacked(lambda manifest, _: manifest.update(schema="qdeploy.bundle/1")),
        "has schema 'qdeploy.bundle/1', this version reads 'qdeploy.bundle/2'",
    ),
    "unknown key": (repacked(lambda manifest, _: manifest.update(colour="red")), "manifest.json: colour is an unknown"),
    "nan": (repacked(lambda manifest, _: manifest["metric"].update(value=float("nan"))), "NaN is no finite number"),
    "no inputs": (repacked(lambda manifest, _: manifest.pop("inputs")), "manifest.json: inputs is missing"),
    "no model": (repacked(lambda _, files: files.pop("model.onnx")), "holds 'golden.npz' where model.onnx should be"),
    "lists a path": (repacked(lambda _, files: files.update({"a/../b": b""})), "it also holds 'a/../b'"),
}  # fmt: skip


def npz_of_objects() -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.array([{}]), version=(1, 0))
    return archive({"input.input.npy": buffer.getvalue(), "output.output.npy": buffer.getvalue()})


def unpacked_by_qdeploy(path: Path) -> None:
    unpack(path, path.parent / "unpacked")


READERS = {"runner": runner.read_bundle, "manifest": manifest_module.read, "unpack": unpacked_by_qdeploy}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_bundle_is_one_clear_error_of_every_reader(name, integer, tmp_path):
    damage, message = DAMAGES[name]
    target = tmp_path / "bad.qdeploy.zip"
    damage(integer, target)
    for reader in READERS.values():
        with pytest.raises((runner.RunnerError, QDeployError), match=message) as caught:
            reader(target)
        assert "\n" not in caught.value.message
        assert "bad.qdeploy.zip" in caught.value.message
        assert list(tmp_path.iterdir()) == [target]  # nothing was extracted


def test_what_one_reader_accepts_all_accept(integer):
    for reader in READERS.values():
        reader(integer)


@pytest.mark.parametrize("name", runner.MEMBERS)
def test_absurd_sizes_are_refused_before_they_are_read(name, integer, unpacked, monkeypatch):
    monkeypatch.setitem(runner.MEMBERS, name, 10)
    for path in (integer, unpacked):
        with pytest.raises(runner.RunnerError, match=rf"{name} has [\d,]+ bytes, more than the 10 that it may have"):
            runner.read_bundle(path)


def test_a_size_is_that_of_what_is_read():
    """A file that grows, or that claims fewer bytes than it has, gives no more than it claimed."""
    with pytest.raises(ValueError, match="it also holds 'b'"):
        runner.read_zip(io.BytesIO(archive({"a": b"12", "b": b""})), 1 << 20, {"a": 2})
    assert runner._read_exactly(io.BytesIO(bytes(100)), 10, "a", 10) == bytes(10)
    with pytest.raises(ValueError, match="it ends within a"):
        runner._read_exactly(io.BytesIO(bytes(9)), 10, "a", 10)


def test_a_missing_bundle_or_member_is_named(tmp_path, unpacked):
    with pytest.raises(runner.RunnerError, match="There is no bundle"):
        runner.read_bundle(tmp_path / "no.qdeploy.zip")
    folder = shutil.copytree(unpacked, tmp_path / "copy")
    golden = (folder / "golden.npz").rename(tmp_path / "golden.npz")
    with pytest.raises(runner.RunnerError, match=r"golden.npz is missing"):
        runner.read_bundle(folder)
    (folder / "golden.npz").symlink_to(golden)
    with pytest.raises(runner.RunnerError, match=r"golden.npz is not a plain file"):
        runner.read_bundle(folder)


# ------------------------------------------------------------------------------------------------------- self-test


@pytest.mark.parametrize("method", ["float32", "ptq"])
def test_the_selftest_passes_where_the_bundle_was_built(method, tmp_path):
    result = runner.selftest(write_bundle(tmp_path, method=method), threads=1)
    assert result["passed"]
    assert (result["samples"], result["values"], result["differing"]) == (8, 80, 0)


def shifted(step: float) -> Callable[[dict[str, Any], Members], None]:
    """Move one golden output by ``step``."""
    return lambda manifest, files: files.update(bundles.shift_golden(files, step, (3, 4)))


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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("bench", "--batch", "1000000000000"), "A batch of 1000000000000 does not fit this machine's memory"),
        (("bench", "--batch", "1" + "0" * 400), "does not fit this machine's memory"),
        (("bench", "--batch", "0"), "cannot run with a batch of 0"),
        (("bench", "--seconds", "nan"), "nan is no time to measure for. Give 0.01 to 86400 seconds."),
        (("bench", "--seconds", "-1"), "-1.0 is no time to measure for"),
        (("bench", "--seconds", "1e9"), "1000000000.0 is no time to measure for"),
        (("bench", "--threads", "1000000"), "cannot run with 1000000 threads"),
        (("predict", "x.npy", "--top", "0"), "0 classes cannot be shown"),
    ],
)
def test_absurd_numbers_are_one_line_errors(arguments, said, unpacked):
    assert said in one_line_error(run_py(unpacked, *arguments))


def test_memory_that_runs_out_is_a_one_line_error(integer, monkeypatch):
    monkeypatch.setattr(runner, "memory_bytes", lambda: 0)  # a system that does not say how much it has
    with pytest.raises(runner.RunnerError, match="does not fit this machine's memory"):
        runner.bench_feeds(runner.read_bundle(integer), 1 << 58)


@pytest.mark.parametrize("command", ["selftest", "bench", "predict"])
def test_every_command_has_help_with_an_example_that_it_accepts(command, unpacked):
    said = run_py(unpacked, command, "--help").stdout
    assert f"Example: python run.py {command}" in said
    example = said.rpartition("Example: python run.py ")[2].split()
    assert runner._parser().parse_args(example)


def test_help_lists_what_people_use_and_not_what_a_bench_does(unpacked):
    said = run_py(unpacked, "--help").stdout
    assert "worker" not in said
    assert all(f"\n    {command} " in said for command in ("selftest", "bench", "predict"))


def test_predict_scales_an_ordinary_image_to_the_raw_range_and_says_so(unpacked, integer, tmp_path):
    """Raw digits are 0 to 16; whoever draws one saves 0 to 255."""
    from PIL import Image

    golden = runner.read_bundle(integer)["golden"]
    raw, expected = golden["input.input"][2], golden["output.output"][2]
    Image.fromarray(np.rint(raw * (255 / 16)).astype(np.uint8)).save(tmp_path / "drawn.png")
    result = run_py(unpacked, "predict", str(tmp_path / "drawn.png"), "--json", "--top", "10")
    assert result.stderr == "note: the pixels of drawn.png, 0 to 255, are scaled to raw values, 0 to 16\n"
    assert {entry["index"]: entry["output"] for entry in json.loads(result.stdout)[0]} == dict(
        enumerate(expected.tolist())
    )


def test_pixels_as_raw_values():
    pixels = np.array([[0, 51, 255]], np.uint8)
    for raw, expected in (
        ({"dtype": "uint8"}, [0, 51, 255]),
        ({"dtype": "uint8", "range": [0, 255]}, [0, 51, 255]),
        ({"dtype": "uint8", "range": [0, 10]}, [0, 2, 10]),
        ({"dtype": "float32", "range": [-1, 1]}, [-1, -0.6, 1]),
    ):
        np.testing.assert_allclose(runner._to_range(pixels, raw, Path("a.png"))[0], expected, rtol=1e-6)


def test_predict_refuses_what_is_no_sample(unpacked, tmp_path):
    from PIL import Image

    np.save(tmp_path / "shape.npy", np.zeros((9, 8), np.uint8))
    np.save(tmp_path / "values.npy", np.full((8, 8), 0.5))
    np.save(tmp_path / "range.npy", np.full((8, 8), 255, np.uint8))
    np.save(tmp_path / "pickle.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "text.png").write_text("no image")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "large.png")
    Image.new("I;16", (8, 8), 40_000).save(tmp_path / "deep.png")
    for name, message in (
        ("shape.npy", "has shape [9, 8]; a raw sample has shape [8, 8]"),
        ("values.npy", "the raw type uint8 cannot represent"),
        ("range.npy", "has values from 255 to 255, not from 0 to 16"),
        ("pickle.npy", "cannot be read"),
        ("text.png", "cannot be read"),
        ("large.png", "cannot be read: Image size (400000000 pixels) exceeds"),
        ("deep.png", "has more than 8 bits a channel"),
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
