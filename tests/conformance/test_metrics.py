"""Every metric keeps the contract: the folder is the list."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from qdeploy.core import plugins

NAMES = plugins.names("metric")


@pytest.fixture
def scored():
    generator = np.random.default_rng(0)
    return generator.normal(size=(300, 20)).astype(np.float32), generator.integers(0, 20, 300)


@pytest.mark.parametrize("name", NAMES)
def test_value_is_the_mean_over_samples_in_any_order_and_any_batches(name, scored):
    metric = plugins.load("metric", name)()
    outputs, targets = scored
    rows = metric.prepare(outputs, targets)
    assert rows.shape[0] == 300
    assert metric.value(rows) == metric.value(rows[::-1])
    batches = [metric.prepare(outputs[i : i + 7], targets[i : i + 7]) for i in range(0, 300, 7)]
    assert np.array_equal(np.concatenate(batches), rows)
    assert isinstance(metric.value(rows), float)


@pytest.mark.parametrize("name", NAMES)
def test_better_answers_are_better(name, scored):
    metric = plugins.load("metric", name)()
    outputs, targets = scored
    right = np.eye(20, dtype=np.float32)[targets]
    values = [metric.value(metric.prepare(o, targets)) for o in (right, outputs, -right)]
    assert values == sorted(values, reverse=metric.higher_is_better)
    assert values[0] != values[-1]


@pytest.mark.parametrize("name", NAMES)
def test_decisions_are_one_a_sample(name, scored):
    metric = plugins.load("metric", name)()
    assert metric.name == name
    assert metric.decisions(scored[0]).shape == (300,)


def test_they_need_no_torch():
    code = f"""
import sys
from qdeploy.core import plugins
for name in {NAMES}:
    plugins.load("metric", name)()
sys.exit("torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
