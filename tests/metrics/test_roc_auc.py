from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from qdeploy.metrics.roc_auc import Metric


@pytest.mark.parametrize("levels", [2, 5, 100_000])
def test_it_is_scikit_learns_with_and_without_equal_scores(levels):
    generator = np.random.default_rng(levels)
    outputs = (generator.integers(0, levels, (2000, 2)) / levels).astype(np.float32)
    targets = (generator.uniform(size=2000) < 0.3).astype(np.int64)
    outputs[targets == 1, 1] += np.float32(0.25)
    rows = Metric().prepare(outputs, targets)
    assert Metric().value(rows) == pytest.approx(roc_auc_score(targets, rows[:, 0]), abs=1e-12)
    picks = generator.integers(0, 2000, 2000)  # a resample has every sample several times
    assert Metric().value(rows[picks]) == pytest.approx(roc_auc_score(targets[picks], rows[picks, 0]), abs=1e-12)


def test_scores_rank_as_the_softmax_does_where_that_is_saturated():
    outputs = np.array([[-60, 40], [-30, 40], [40, -30], [40, -60]], np.float32)
    rows = Metric().prepare(outputs, np.array([1, 0, 1, 0]))
    assert Metric().value(rows) == 0.75
    assert len(set(rows[:, 0])) == 4


@pytest.mark.parametrize("target", [0, 1])
def test_one_class_alone_says_nothing(target):
    assert Metric().value(Metric().prepare(np.eye(2, dtype=np.float32), np.array([target, target]))) == 0.5


def test_other_outputs_are_refused():
    with pytest.raises(ValueError, match=r"\[N, 2\], not \[4, 3\]"):
        Metric().prepare(np.zeros((4, 3), np.float32), np.zeros(4, np.int64))
