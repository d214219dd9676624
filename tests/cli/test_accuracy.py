"""``qdeploy accuracy``: the metric of a bundle where it runs, on the data that it was built with and on no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from qdeploy import runner
from qdeploy.cli import main
from qdeploy.core import plugins, records
from qdeploy.verify.evaluate import fingerprint
from tests import bundles

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


def test_a_bundle_chooses_no_code_to_run(tmp_path: Path):
    evil = tmp_path / "evil.py"
    evil.write_text("raise SystemExit('run')")
    metric = {**METRIC, "dataset": str(evil), "split": "evaluation", "fingerprint": "0123abcd"}
    result = accuracy(bundles.write_bundle(tmp_path, metric=metric))
    assert result.exit_code == 2
    assert "a data set of its builder's own" in result.output
    assert "run" not in result.output.split()


def test_bad_options_are_errors(folder: Path):
    assert "is not KEY=VALUE" in accuracy(folder, "--data", "root").output
    assert "There is no dataset named" in accuracy(folder, "--dataset", "digts").output
    bundle = bundles.write_bundle(folder, "none", metric=None)
    assert "records no metric" in accuracy(bundle).output
