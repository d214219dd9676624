from __future__ import annotations

import numpy as np
import pytest
import torch

from qdeploy.core.errors import QDeployError
from qdeploy.metrics import hit_rate10, ndcg10
from qdeploy.torchvision_remedy import make_importable


@pytest.fixture
def scored():
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 60, 400)
    outputs = generator.normal(size=(400, 60)).astype(np.float32)
    outputs[np.arange(400), targets] += np.float32(1.5)
    return outputs, targets


@pytest.mark.parametrize(
    ("metric", "function"),
    [(hit_rate10.Metric(), "retrieval_hit_rate"), (ndcg10.Metric(), "retrieval_normalized_dcg")],
)
def test_each_sample_is_torchmetrics(scored, metric, function):
    make_importable()  # torchmetrics imports torchvision
    import torchmetrics.functional.retrieval as reference

    outputs, targets = scored
    right = np.eye(60, dtype=np.int64)[targets]
    expected = [
        getattr(reference, function)(torch.from_numpy(o), torch.from_numpy(t), top_k=10).item()
        for o, t in zip(outputs, right, strict=True)
    ]
    rows = metric.prepare(outputs, targets)
    assert rows == pytest.approx(expected, abs=1e-6)
    assert metric.value(rows) == pytest.approx(np.mean(expected), abs=1e-6)
    assert 0 < metric.value(rows) < 1


@pytest.mark.parametrize("metric", [hit_rate10.Metric(), ndcg10.Metric()])
@pytest.mark.parametrize("score", [0.0, np.nan])
def test_scores_that_are_all_alike_are_never_right(metric, score):
    outputs = np.full((3, 30), score, np.float32)
    assert metric.value(metric.prepare(outputs, np.array([0, 1, 29]))) == 0.0


def test_places():
    outputs = -np.tile(np.arange(20, dtype=np.float32), (4, 1))
    targets = np.array([0, 1, 9, 10])
    assert ndcg10.Metric().prepare(outputs, targets) == pytest.approx([1.0, 1 / np.log2(3), 1 / np.log2(11), 0.0])
    assert hit_rate10.Metric().prepare(outputs, targets).tolist() == [1.0, 1.0, 1.0, 0.0]
    assert ndcg10.Metric().decisions(outputs).tolist() == [0, 0, 0, 0]


def test_an_item_that_the_model_does_not_score():
    with pytest.raises(QDeployError, match="The model scores 4 items, and the right one is item 7"):
        ndcg10.Metric().prepare(np.zeros((2, 4), np.float32), np.array([1, 7]))
