from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qdeploy import runner
from qdeploy.bundle.archive import npz
from qdeploy.core.errors import QDeployError
from qdeploy.targets import _emulators
from qdeploy.targets.local import Target as Local
from qdeploy.targets.qemu import Target
from tests import bundles

# What a model has beside what all ARM64 has, of the instructions that choose kernels; qemu does not say it of x86.
FLAGS = {
    "cortex-a72": set(),
    "cortex-a76": {"asimddp"},
    "max": {"asimddp", "i8mm", "sve", "bf16"},
    "Haswell": set(),
    "x86_64/max": set(),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundles.write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def raw() -> dict[str, np.ndarray]:
    return {"input": np.random.default_rng(1).integers(0, 17, (200, 8, 8), dtype=np.uint8)}


@pytest.fixture(scope="module")
def expected(bundle, raw) -> dict[str, np.ndarray]:
    with Local().open(bundle, name="int8") as worker:
        worker.load(threads=1)
        return worker.predict(raw)


@pytest.mark.parametrize("cpu", FLAGS)
def test_a_bundle_gives_the_same_answers_bit_for_bit(cpu, bundle, raw, expected, emulators):
    with Target(cpu) as target, target.open(bundle, name="int8") as worker:
        loaded = worker.load(threads=1)
        golden, record = loaded["golden"], loaded["environment"]
        assert (golden["passed"], golden["comparison"], golden["samples"]) == (True, "exact", 8)
        assert (target.name, record["emulator"]) == (f"qemu:{cpu}", f"qemu {cpu.rpartition('/')[2]}")
        assert record["architecture"] == ("x86_64" if cpu in ("Haswell", "x86_64/max") else "aarch64")
        assert set(record["isa"]) - {"asimd"} == FLAGS[cpu]
        assert (record["onnxruntime"], record["numpy"]) == (_emulators.ort.__version__, np.__version__)
        found = worker.predict(raw)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def saturating(folder: Path, **manifest: object) -> Path:
    """A bundle in which every weight is 127, and most activations are 255."""
    found, files = bundles.read_members(bundles.write_bundle(folder))
    model = onnx.load_from_string(files["model.onnx"])
    for constant in model.graph.initializer:
        if constant.name in ("w", "v"):
            weight = numpy_helper.to_array(constant)
            constant.CopyFrom(numpy_helper.from_array(np.full_like(weight, 127), constant.name))
    raw = np.full((8, 8, 8), 16, np.uint8)
    session = runner.make_session(model.SerializeToString(), 1, options=runner.PRECISE)
    outputs = session.run(["output"], {"input": runner.preprocess(raw, bundles.STEPS)})[0]
    golden = npz({"input.input": raw, "output.output": outputs})
    changed = {"model.onnx": model.SerializeToString(), "golden.npz": golden}
    return bundles.write_members(folder / "saturating.qdeploy.zip", {**found, **manifest}, {**files, **changed})


def test_weights_that_saturate_without_vnni_are_noticed_and_computed_exactly(tmp_path, emulators):
    unproven = saturating(tmp_path / "unproven")
    disproven = saturating(tmp_path / "disproven", portability={"saturation": [], "arithmetic": []})
    with Target("Haswell") as target:
        with target.open(unproven, name="int8") as worker:
            loaded = worker.load(threads=1)
            assert loaded["golden"]["passed"]
            assert "session.x64quantprecision" in loaded["note"]
        with target.open(disproven, name="int8") as worker:  # a bundle that claims a proof gets the fast kernels
            golden = worker.load(threads=1)["golden"]
            assert not golden["passed"]
            assert golden["differing"] == golden["values"]


def test_variables_for_this_python_do_not_reach_the_other_one(bundle, emulators, monkeypatch, tmp_path):
    (tmp_path / "numpy.py").write_text("raise ImportError('the wrong numpy')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Target("cortex-a72").open(bundle, name="int8") as worker:
        assert worker.load(threads=1, batch=1)["golden"]["passed"]


@pytest.mark.parametrize(
    ("cpu", "problem", "hint"),
    [
        ("", "needs a CPU", "qemu:cortex-a72"),
        ("cortex-a77", "no CPU named 'cortex-a77'", "'cortex-a76'"),
        ("haswell", "no CPU named 'haswell'", "'Haswell'"),
        ("aarch64/Haswell", "no CPU named 'aarch64/Haswell'", "'Haswell'"),
        ("Cascadelake-Server", "qemu does not emulate avx512", "Haswell"),
        ("coreduo", "does not start on qemu:coreduo: .*64 bit", "later model"),
    ],
)
def test_what_cannot_be_emulated_is_an_error(cpu, problem, hint, emulators):
    with pytest.raises(QDeployError, match=problem) as caught:
        Target(cpu)
    assert hint in caught.value.hint


def test_runtimes_that_need_qdeploy_on_the_other_side_are_refused(bundle, emulators):
    with pytest.raises(QDeployError, match=r"'ort_web' runs on --target local only, not on qemu:max"):
        Target("max").open(bundle, name="int8", runtime="ort_web")


def test_without_emulators_an_error_says_the_command_that_fetches_them(monkeypatch, tmp_path):
    monkeypatch.setenv("QDEPLOY_EMULATORS", str(tmp_path / "none"))
    with pytest.raises(QDeployError, match=f"no emulated CPUs in {tmp_path}") as caught:
        Target("cortex-a72")
    command = caught.value.hint.partition(": ")[2].split()
    assert command == [sys.executable, "-m", "qdeploy.targets._emulators"]


def test_the_folder_names_the_versions_and_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.delenv("QDEPLOY_EMULATORS", raising=False)
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path))
    with pytest.raises(QDeployError, match=f"onnxruntime-{_emulators.ort.__version__}") as caught:
        _emulators.find()
    assert str(tmp_path) in caught.value.message


def fetch(**variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qdeploy.targets._emulators"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables})


def test_what_is_there_is_not_fetched_again(emulators):
    before = emulators.folder.stat().st_mtime_ns
    done = fetch(QDEPLOY_EMULATORS=str(emulators.folder), PATH="/nowhere")  # neither apt nor dpkg is found
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(emulators.folder), "")
    assert emulators.folder.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"PATH": "/nowhere"}, "there is no apt-get here"),
        ({"QDEPLOY_CACHE": "/dev/null/cache"}, "/dev/null/cache cannot be written"),
        ({"QDEPLOY_EMULATORS": "/etc"}, "/etc holds something else"),
    ],
)
def test_a_fetch_that_fails_says_why_in_one_line(variables, told, tmp_path):
    done = fetch(**{"QDEPLOY_CACHE": str(tmp_path), "QDEPLOY_EMULATORS": "", **variables})
    assert (done.returncode, done.stdout) == (2, "")
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: ")
    assert told in error or ("there is no" in error and not Path("/usr/bin/apt-get").exists())


@pytest.mark.skipif(not Path("/usr/bin/apt-get").exists(), reason="emulators are fetched with apt")
def test_a_mirror_that_cannot_be_reached_leaves_no_folder_and_the_next_fetch_may_go_on(tmp_path):
    done = fetch(QDEPLOY_CACHE=str(tmp_path), QDEPLOY_EMULATORS="", QDEPLOY_DEBIAN_MIRROR=f"file:{tmp_path}/none")
    assert done.returncode == 2
    assert f"{tmp_path}/none" in done.stderr
    assert "QDEPLOY_DEBIAN_MIRROR" in done.stderr
    names = sorted(path.suffix for path in tmp_path.iterdir())
    assert names == [".lock", ".partial"]
