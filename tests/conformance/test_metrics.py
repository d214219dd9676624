"""Every metric keeps the contract: the folder is the list."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from qdeploy.core import plugins

NAMES = plugins.names("metric")


# What a metric scores, where that is not 20 classes: 2 classes, or images.
CLASSES = {"roc_auc": 2}
IMAGES = ("psnr",)


@pytest.fixture
def scored(request):
    """A metric, the right answers, some answers, wrong answers, and the targets, of 300 samples."""
    name, generator = request.param, np.random.default_rng(0)
    metric = plugins.load("metric", name)()
    assert metric.name == name
    if name in IMAGES:
        targets = generator.uniform(size=(300, 1, 6, 6)).astype(np.float32)
        noise = generator.normal(scale=0.1, size=targets.shape).astype(np.float32)
        outputs = targets, targets + noise, 1 - targets
        targets = np.where(generator.uniform(size=targets.shape) < 0.1, np.float32(np.nan), targets)
        return metric, outputs, targets
    classes = CLASSES.get(name, 20)
    targets = generator.integers(0, classes, 300)
    right = np.eye(classes, dtype=np.float32)[targets]
    return metric, (right, generator.normal(size=right.shape).astype(np.float32), -right), targets


@pytest.mark.parametrize("scored", NAMES, indirect=True)
def test_value_is_one_over_samples_in_any_order_and_any_batches(scored):
    metric, (_, outputs, _), targets = scored
    rows = metric.prepare(outputs, targets)
    assert rows.shape[0] == 300
    assert rows.dtype == np.float64
    assert metric.value(rows) == pytest.approx(metric.value(rows[::-1]), rel=1e-12)
    batches = [metric.prepare(outputs[i : i + 7], targets[i : i + 7]) for i in range(0, 300, 7)]
    assert np.array_equal(np.concatenate(batches), rows)
    assert isinstance(metric.value(rows), float)


@pytest.mark.parametrize("scored", NAMES, indirect=True)
def test_better_answers_are_better(scored):
    metric, answers, targets = scored
    values = [metric.value(metric.prepare(outputs, targets)) for outputs in answers]
    assert values == sorted(values, reverse=metric.higher_is_better)
    assert values[0] != values[-1]


@pytest.mark.parametrize("scored", NAMES, indirect=True)
def test_value_is_that_of_any_resample(scored):
    """What the bootstrap asks: a number for every choice of samples, the same one twice."""
    metric, (right, outputs, wrong), targets = scored
    rows = metric.prepare(outputs, targets)
    generator = np.random.default_rng(1)
    values = [metric.value(rows[generator.integers(0, 300, 300)]) for _ in range(50)]
    low, high = sorted(metric.value(metric.prepare(o, targets)) for o in (right, wrong))
    assert np.std(values) > 0
    assert low <= min(values) <= metric.value(rows) <= max(values) <= high


@pytest.mark.parametrize("scored", NAMES, indirect=True)
def test_a_sample_has_its_decisions_alone(scored):
    metric, (_, outputs, _), _ = scored
    decisions = metric.decisions(outputs)
    assert len(decisions) == 300
    assert decisions.dtype.kind in "iu"
    assert np.array_equal(decisions[100:107], metric.decisions(outputs[100:107]))


def test_they_need_no_torch():
    code = f"""
import sys
from qdeploy.core import plugins
for name in {NAMES}:
    plugins.load("metric", name)()
sys.exit("torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
