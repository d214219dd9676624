"""``qdeploy accuracy``: the metric of a bundle where it runs, on the data that it was built with and on no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from qdeploy import runner
from qdeploy.cli import main
from qdeploy.core import plugins, records
from qdeploy.verify.evaluate import fingerprint
from tests import bundles
from tests.reports import sample

METRIC = {"name": "top1", "value": 0.1, "low": 0.0, "high": 0.2, "samples": 359, "higher_is_better": True}


def accuracy(*arguments: object):
    return CliRunner().invoke(main.app, ["accuracy", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    return plugins.load("dataset", "digits")().split("evaluation")


@pytest.fixture
def folder(tmp_path: Path, digits: tuple[np.ndarray, np.ndarray]) -> Path:
    """A float32 bundle and its integer twin, judged on the digits."""
    metric = {**METRIC, "dataset": "digits", "split": "evaluation", "fingerprint": fingerprint(*digits)}
    for name, method in (("fp32", "float32"), ("int8", "ptq")):
        bundles.write_bundle(tmp_path / "build", name, method, metric=metric)
    return tmp_path / "build"


def test_the_whole_split_is_scored(folder: Path, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path):
    result = accuracy(folder, "--json", tmp_path / "answers.json")
    assert result.exit_code == 0, result.output
    answers = records.load(records.Answers, tmp_path / "answers.json")
    float32, int8 = answers.rows
    raw, targets = digits
    for row in answers.rows:
        bundle = runner.read_bundle(row.bundle)
        outputs = runner.predict(bundle, {"input": raw}, threads=1)["output"]
        decisions = outputs.argmax(axis=1)
        assert row.metric is not None
        assert row.metric.value == pytest.approx((decisions == targets).mean())
        assert row.metric.samples == len(targets)
        assert row.decisions is not None
        np.testing.assert_array_equal(records.unpack_decisions(row.decisions), decisions)
    assert float32.delta is None
    assert int8.delta is not None
    assert int8.delta.value == pytest.approx(int8.metric.value - float32.metric.value)
    assert int8.golden.passed
    assert answers.dataset == "digits"


def test_equal_answers_have_equal_digests(folder: Path, tmp_path: Path):
    for name in ("a.json", "b.json"):
        assert accuracy(folder, "--samples", 50, "--json", tmp_path / name).exit_code == 0
    a, b = (records.load(records.Answers, tmp_path / name).rows for name in ("a.json", "b.json"))
    assert [row.outputs_sha256 for row in a] == [row.outputs_sha256 for row in b]
    assert a[0].outputs_sha256 != a[1].outputs_sha256
    assert a[0].metric is not None
    assert a[0].metric.samples == 50


def test_other_data_than_it_was_built_with_is_refused(tmp_path: Path):
    metric = {**METRIC, "dataset": "digits", "split": "evaluation", "fingerprint": "0123abcd"}
    path = bundles.write_bundle(tmp_path, metric=metric)
    result = accuracy(path)
    assert result.exit_code == 2
    assert "is not the one that" in result.output


def test_every_bundle_is_asked_on_its_own_data_alone(folder: Path, tmp_path: Path):
    """A split of the same name is not enough: other samples would give an accuracy of something else."""
    metric = {**METRIC, "dataset": "digits", "split": "evaluation", "fingerprint": "0123abcd"}
    other = bundles.write_bundle(tmp_path, "other", metric=metric)
    result = accuracy(folder, other, "--json", tmp_path / "answers.json")
    assert result.exit_code == 2
    assert "was not judged by top1 on these samples of digits" in " ".join(result.output.split())
    answers = records.load(records.Answers, tmp_path / "answers.json")
    assert [row.name for row in answers.rows] == ["fp32", "int8"]


@pytest.mark.parametrize(("key", "message"), [("dataset", "of its builder's own"), ("name", "which is not run")])
def test_a_bundle_chooses_no_code_to_run(key: str, message: str, digits, tmp_path: Path):
    evil, mark = tmp_path / "evil.py", tmp_path / "run"
    evil.write_text(f"open({str(mark)!r}, 'w')")
    metric = {**METRIC, "dataset": "digits", "split": "evaluation", "fingerprint": fingerprint(*digits), key: str(evil)}
    result = accuracy(bundles.write_bundle(tmp_path, metric=metric))
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert not mark.exists()


def test_a_data_set_may_have_another_name_here(folder: Path, tmp_path: Path):
    """What counts is that the samples are the same: a file of the user's own may lie elsewhere."""
    own = tmp_path / "own.py"
    own.write_text("from qdeploy.datasets.digits import Dataset\n")
    result = accuracy(folder, "--dataset", own, "--samples", 20)
    assert result.exit_code == 0, result.output


def test_bad_options_are_errors(folder: Path):
    assert "is not KEY=VALUE" in accuracy(folder, "--data", "root").output
    assert "There is no dataset named" in accuracy(folder, "--dataset", "digts").output
    assert "--data rot: unknown key" in accuracy(folder, "--data", "rot=here").output
    wrong = accuracy(folder, "--data", "validation=abc")
    assert (wrong.exit_code, "--data validation" in wrong.output) == (2, True)
    bundle = bundles.write_bundle(folder, "none", metric=None)
    assert "records no metric" in accuracy(bundle).output


def test_golden_vectors_that_differ_are_told_by_the_exit_code(folder: Path):
    manifest, files = bundles.read_members(folder / "int8.qdeploy.zip")
    bundles.write_members(folder / "int8.qdeploy.zip", manifest, bundles.shift_golden(files, 1.0))
    result = accuracy(folder, "--samples", 20)
    assert "80 of 80 differ" in result.output
    assert result.exit_code == 1


def test_a_builds_folder_knows_its_data(tmp_path: Path):
    options = {"evaluation_samples": 50}
    split = plugins.load("dataset", "digits")(**options).split("evaluation")
    metric = {**METRIC, "dataset": "digits", "split": "evaluation", "fingerprint": fingerprint(*split), "samples": 50}
    path = bundles.write_bundle(tmp_path, "fp32", metric=metric)
    found = sample.full()
    own = replace(found.variants[0], bundle=path.name)
    places = {"root": "/nowhere", "download": False}  # as another machine might have written them
    results = replace(
        found, variants=(own,), dataset="digits", data_options=options | places, contrasts=(), refusals=()
    )
    records.save(results, tmp_path / "results.json")
    assert accuracy(tmp_path).exit_code == 0
    assert accuracy(path, tmp_path).exit_code == 0
    assert "is not the one that" in accuracy(path).output
    assert "is not the one that" in accuracy(tmp_path, "--data", "evaluation_samples=40").output
    assert accuracy(path, "--data", "evaluation_samples=50").exit_code == 0
    records.save(replace(results, data_options={"wrong": 1}), tmp_path / "results.json")
    refused = accuracy(tmp_path)
    assert refused.exit_code == 2
    assert "results.json, data_options" in refused.output
