from __future__ import annotations

import numpy as np
import pytest
import torch

from qdeploy.metrics import top1, top5
from qdeploy.torchvision_remedy import make_importable


@pytest.mark.parametrize(("metric", "k"), [(top1.Metric(), 1), (top5.Metric(), 5)])
@pytest.mark.parametrize("classes", [5, 10, 100])
def test_accuracy_is_torchmetrics(metric, k, classes):
    generator = np.random.default_rng(classes)
    outputs = generator.normal(size=(500, classes)).astype(np.float32)
    targets = generator.integers(0, classes, 500)
    make_importable()  # torchmetrics imports torchvision
    from torchmetrics.functional.classification import multiclass_accuracy

    expected = multiclass_accuracy(
        torch.from_numpy(outputs), torch.from_numpy(targets), num_classes=classes, average="micro", top_k=k
    )
    assert metric.value(metric.prepare(outputs, targets)) == pytest.approx(expected.item(), abs=1e-6)


def test_rows_say_which_samples_are_right():
    outputs = np.array([[1, 2, 0], [3, 1, 0], [0, 0, 1]], np.float32)
    rows = top1.Metric().prepare(outputs, np.array([1, 1, 2]))
    assert rows.tolist() == [1.0, 0.0, 1.0]
    assert rows.dtype == np.float64
    assert top1.Metric().decisions(outputs).tolist() == [1, 0, 2]


def test_of_equal_scores_the_first_wins():
    assert top1.Metric().decisions(np.zeros((2, 4), np.float32)).tolist() == [0, 0]


def test_what_is_not_a_number_is_not_right():
    outputs = np.full((3, 10), np.nan, np.float32)
    assert top5.Metric().value(top5.Metric().prepare(outputs, np.array([1, 2, 3]))) == 0.0
