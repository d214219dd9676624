"""The whole line, on real data: what a build leaves, what it does not do again, and what it never reads too early."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qdeploy import pipeline, runner
from qdeploy.bundle import manifest
from qdeploy.core import plugins, records
from qdeploy.core.files import sha256
from qdeploy.core.records import Results
from qdeploy.core.stages import execute
from qdeploy.recipe.load import load

ROOT = Path(__file__).parents[1]
RECIPE = """
name: small
model: {factory: "models/simple_cnn.py:SimpleCNN", channels: 16}
data: {name: %s, calibration: 64}
train: {epochs: 4, lr: 0.004}
variants:
  fp32: {}
  ptq-int8: {method: ptq, activations: {observer: mse}}
bench: {seconds: 0.1, threads: [1]}
"""
# Digits, with a record of what was read and when.
WATCHED = """
from qdeploy.datasets.digits import Dataset as Digits

READ = []


class Dataset(Digits):
    def split(self, name):
        READ.append(name)
        return super().split(name)
"""


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(RECIPE % "digits")
    return path


@pytest.fixture(scope="module")
def built(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    out = tmp_path_factory.mktemp("build")
    return out, pipeline.build(load(recipe_file), out)


def test_a_build_leaves_everything(built: tuple[Path, Results]) -> None:
    out, results = built
    assert {path.name for path in out.iterdir()} >= {
        "checkpoint.safetensors", "fp32.qdeploy.zip", "ptq-int8.qdeploy.zip", "results.json", "report.html",
    }  # fmt: skip
    fp32, int8 = results.variants
    assert int8.integer_mac_share == 1.0
    assert int8.differing_codes == 0
    assert any(layer.outputs_checked for layer in int8.layers)
    assert int8.compression > 2
    assert int8.delta is not None
    assert abs(int8.delta.value) < 0.05
    assert fp32.metric.value > 0.8
    assert int8.latency is not None
    assert int8.latency.speedup is not None
    assert results == records.load(Results, out / "results.json")


def test_the_metric_is_the_bundle_s_own(built: tuple[Path, Results]) -> None:
    """Running the shipped model over the evaluation split with the manifest's steps gives the reported number."""
    out, results = built
    bundle = runner.read_bundle(out / "ptq-int8.qdeploy.zip")
    raw, targets = plugins.load("dataset", "digits")(calibration=64).split("evaluation")
    (entry,) = bundle["manifest"]["inputs"]
    session = runner.make_session(bundle["model"], 1)
    (outputs,) = session.run(None, {entry["name"]: runner.preprocess(raw, entry["preprocessing"])})
    accuracy = float((outputs.argmax(1) == targets).mean())
    assert accuracy == results.variants[1].metric.value == manifest.read(out / "ptq-int8.qdeploy.zip").metric.value


def test_training_leaves_its_epochs(built: tuple[Path, Results], recipe_file: Path) -> None:
    found = pipeline.histories(load(recipe_file), built[0])
    assert list(found) == ["train"]
    assert [line["epoch"] for line in found["train"]["epochs"]] == [1, 2, 3, 4]


def test_an_unchanged_build_does_nothing(built: tuple[Path, Results], recipe_file: Path) -> None:
    out, results = built
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    started: list[str] = []
    events = pipeline.Events(stage=lambda stage: started.append(stage.name))
    again = pipeline.build(load(recipe_file), out, events=events)
    assert started == []
    assert again == results
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix != ".lock" and path.is_file()} == {
        path: stamp for path, stamp in before.items() if path.suffix != ".lock"
    }


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("variants.ptq-int8.activations.observer=minmax", {"ptq-int8"}),
        ("bench.seconds=3", set()),
        ("train.epochs=3", {"train", "fp32", "ptq-int8"}),
        ("data.seed=1", {"train", "fp32", "ptq-int8"}),
    ],
)
def test_a_change_rebuilds_what_depends_on_it(
    built: tuple[Path, Results], recipe_file: Path, change: str, expected: set[str]
) -> None:
    waiting = pipeline.pending(load(recipe_file, overrides=[change]), built[0])
    assert {stage.name.split("/")[0] for stage in waiting} == expected


def test_a_rebuild_is_byte_identical(built: tuple[Path, Results], recipe_file: Path, tmp_path: Path) -> None:
    again = pipeline.build(load(recipe_file), tmp_path, measure=False)
    assert [v.bundle_sha256 for v in again.variants] == [v.bundle_sha256 for v in built[1].variants]


def test_evaluation_data_is_unread_before_verify(tmp_path: Path) -> None:
    plugin = tmp_path / "watched.py"
    plugin.write_text(WATCHED)
    recipe = tmp_path / "watched.yaml"
    recipe.write_text(RECIPE % plugin)
    stages = pipeline.plan(load(recipe), pipeline.Events())
    read = sys.modules[plugins.load("dataset", str(plugin)).__module__].READ
    early = [stage for stage in stages if stage.name == "train" or stage.name.endswith("/model")]
    execute(early, tmp_path / "out")
    assert set(read) == {"train", "validation", "calibration"}
    execute(stages, tmp_path / "out")
    assert "evaluation" in read


def test_a_killed_build_resumes(recipe_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qdeploy", "build", str(recipe_file), "--out", str(tmp_path), "--no-bench"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    trained = tmp_path / "stages" / "train"
    deadline = time.monotonic() + 240
    while not (trained.is_dir() and any(p.is_dir() and not p.name.startswith(".") for p in trained.iterdir())):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "results.json").exists()
    waiting = [stage.name for stage in pipeline.pending(load(recipe_file), tmp_path)]
    assert waiting
    assert "train" not in waiting
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "run  train" not in done.stderr
    assert json.loads((tmp_path / "results.json").read_text())["schema"] == records.RESULTS_SCHEMA


def test_damaged_results_are_made_again(
    built: tuple[Path, Results], recipe_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A file cut short, one lost, a results.json that is none: what depends on them is redone, the rest kept."""
    out, results = built
    copy = tmp_path_factory.mktemp("damaged") / "out"
    shutil.copytree(out, copy)
    (bundle,) = (copy / "stages/ptq-int8/bundle").glob("*/*.zip")
    bundle.write_bytes(bundle.read_bytes()[:100])
    (proof,) = (copy / "stages/ptq-int8/verify").glob("*/proof.json")
    proof.unlink()
    (copy / "results.json").write_text("{")
    recipe = load(recipe_file)
    assert {stage.name for stage in pipeline.pending(recipe, copy)} == {"ptq-int8/bundle", "ptq-int8/verify"}
    again = pipeline.build(recipe, copy, measure=False)
    assert [v.bundle_sha256 for v in again.variants] == [v.bundle_sha256 for v in results.variants]
    assert runner.read_bundle(copy / "ptq-int8.qdeploy.zip")


def test_what_is_stopped_while_it_is_timed_tells_of_its_own_bundles(
    built: tuple[Path, Results], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(built[0], out)

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.bench, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        pipeline.build(load(recipe_file, ["variants.ptq-int8.weights.bits=4"]), out)
    left = records.load(Results, out / "results.json")
    assert [v.bundle_sha256 for v in left.variants] == [sha256(out / v.bundle) for v in left.variants]
    assert left.variants[1].bundle_sha256 != built[1].variants[1].bundle_sha256
    assert [v.latency is not None for v in left.variants] == [False, False]
    assert (out / "report.html").read_bytes() != (built[0] / "report.html").read_bytes()


def test_a_report_that_was_not_written_is_written_again(
    built: tuple[Path, Results], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between the report and results.json: the next build of either recipe gives both."""
    out = tmp_path / "out"
    shutil.copytree(built[0], out)
    with monkeypatch.context() as patched:
        patched.setattr(records, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pipeline.build(load(recipe_file, ["variants.ptq-int8.weights.bits=4"]), out, measure=False)
    changed = load(recipe_file, ["variants.ptq-int8.weights.bits=4"])
    made = pipeline.build(changed, out, measure=False)
    assert records.load(Results, out / "results.json") == made
    (report,) = out.glob("report.html")
    again = tmp_path / "again"
    shutil.copytree(out, again)
    (again / "report.html").unlink()
    pipeline.build(changed, again, measure=False)
    assert report.read_bytes() == (again / "report.html").read_bytes()


COMPARED = """
contrasts: [[ptq-int8, fp32]]
also_evaluate: [train]
"""


def test_what_is_compared_changes_no_other_stage(recipe_file: Path, tmp_path: Path) -> None:
    compared = tmp_path / "compared.yaml"
    compared.write_text(recipe_file.read_text() + COMPARED)
    plain, more = ({s.name: s.key for s in pipeline.plan(load(f), pipeline.Events())} for f in (recipe_file, compared))
    assert plain.items() <= more.items()
    assert set(more) - set(plain) == {"fp32/on-train", "ptq-int8/on-train", "ptq-int8/against-fp32"}


def test_contrasts_and_further_splits_are_measured_on_what_is_shipped(
    built: tuple[Path, Results], recipe_file: Path, tmp_path: Path
) -> None:
    out, before = built
    compared, copy, started = tmp_path / "compared.yaml", tmp_path / "out", []
    compared.write_text(recipe_file.read_text() + COMPARED)
    shutil.copytree(out, copy)
    events = pipeline.Events(stage=lambda stage: started.append(stage.name))
    results = pipeline.build(load(compared), copy, events=events)
    assert started == ["fp32/on-train", "ptq-int8/on-train", "ptq-int8/against-fp32"]
    (contrast,) = results.contrasts
    assert (contrast.difference, contrast.agreement) == (results.variants[1].delta, results.variants[1].agreement)
    assert contrast.speedup is not None
    raw, targets = plugins.load("dataset", "digits")(calibration=64).split("train")
    bundle = runner.read_bundle(copy / "ptq-int8.qdeploy.zip")
    (entry,) = bundle["manifest"]["inputs"]
    (outputs,) = runner.make_session(bundle["model"], 1).run(
        None, {entry["name"]: runner.preprocess(raw, entry["preprocessing"])}
    )
    (also,) = results.variants[1].also
    assert also.metric.value == float((outputs.argmax(1) == targets).mean())
    assert also.metric.samples == len(raw)
    assert also.gap.value == pytest.approx(also.metric.value - results.variants[1].metric.value)
    assert results.parameters == before.parameters
    assert results.training_seconds is not None
    assert results.data_options == {"calibration": 64}
    assert results.variants[1].summary is not None
    assert results == records.load(Results, copy / "results.json")
