"""The deployed metric: intervals that mean something, paired differences, and no torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.metrics.top1 import Metric
from qdeploy.verify.evaluate import agreement, difference, evaluate


class Scores:
    """Stands where a runtime stands: answers with its own input."""

    inputs = ("x",)
    outputs = ("y",)

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": feeds["x"]}


def rows(accuracy: float, samples: int = 1000) -> np.ndarray:
    return (np.arange(samples) < accuracy * samples).astype(np.float64)


def test_every_sample_counts_once_whatever_the_batch() -> None:
    raw = np.eye(10, dtype=np.float32)[np.arange(130) % 10]
    targets = np.where(np.arange(130) < 100, np.arange(130) % 10, (np.arange(130) + 1) % 10)
    for batch in (7, 64, 500):
        found = evaluate(Scores(), raw, targets, preprocessing=[], metric=Metric(), batch=batch)
        assert found.metric.value == pytest.approx(100 / 130)
        assert found.metric.samples == 130
        assert found.metric.low < found.metric.value < found.metric.high


def test_the_interval_is_the_binomial_one() -> None:
    raw = np.eye(2, dtype=np.float32)[rows(0.9).astype(int)]
    found = evaluate(Scores(), raw, np.ones(1000, np.int64), preprocessing=[], metric=Metric())
    width = 1.96 * np.sqrt(0.9 * 0.1 / 1000)
    assert found.metric.high - found.metric.low == pytest.approx(2 * width, rel=0.15)


def test_a_paired_difference_is_sharper_than_two_intervals() -> None:
    base = rows(0.9)
    worse = base.copy()
    worse[:5] = 0
    delta = difference(worse, base, Metric())
    assert delta.value == pytest.approx(-0.005)
    assert delta.high < 0 < delta.high - delta.low < 0.012
    assert not difference(base, base, Metric()).excludes(0.0)
    assert agreement(worse, base) == pytest.approx(0.995)


def test_answers_that_are_not_numbers_are_refused() -> None:
    raw = np.full((4, 3), np.nan, np.float32)
    with pytest.raises(QDeployError, match="NaN"):
        evaluate(Scores(), raw, np.zeros(4, np.int64), preprocessing=[], metric=Metric())
    with pytest.raises(QDeployError, match="samples"):
        evaluate(Scores(), raw[:0], np.zeros(0, np.int64), preprocessing=[], metric=Metric())


def test_it_needs_no_torch() -> None:
    code = "import sys, qdeploy.verify.evaluate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
