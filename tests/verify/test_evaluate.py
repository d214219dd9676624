"""The deployed metric: every sample once, preprocessed as on a device, with intervals that mean what they say."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.metrics.psnr import Metric as Psnr
from qdeploy.metrics.top1 import Metric
from qdeploy.verify.evaluate import agreement, difference, evaluate, gap, judge


class Scores:
    """A runtime whose scores are its input, and which remembers what it was fed."""

    inputs, outputs = ("x",), ("scores", "features")

    def __init__(self) -> None:
        self.batches: list[np.ndarray] = []

    def run(self, feeds):
        self.batches.append(feeds["x"])
        return {"scores": feeds["x"], "features": feeds["x"][:, :1]}


def scores(samples: int, accuracy: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Class scores that are right for ``accuracy`` of all samples."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 10, samples)
    right = np.arange(samples) < round(accuracy * samples)
    return np.eye(10, dtype=np.float32)[np.where(right, targets, (targets + 1) % 10)], targets


def rows(samples: int, accuracy: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).uniform(size=samples) < accuracy).astype(np.float64)


def test_every_sample_counts_once_whatever_the_batch():
    raw, targets = scores(130, 0.7)
    for batch in (1, 64, 130, 1000):
        runtime, seen = Scores(), []
        found = evaluate(runtime, raw, targets, preprocessing=[], metric=Metric(), batch=batch, progress=seen.append)
        assert found.metric.value == pytest.approx(0.7)
        assert (found.metric.samples, found.metric.name, found.metric.higher_is_better) == (130, "top1", True)
        np.testing.assert_array_equal(np.concatenate(runtime.batches), raw)
        np.testing.assert_array_equal(found.rows, np.arange(130) < 91)
        np.testing.assert_array_equal(found.decisions, raw.argmax(axis=1))
        assert seen[-1] == 130


def test_preprocessing_is_the_manifests():
    raw, targets = scores(20, 1.0)
    runtime = Scores()
    steps = [{"op": "scale", "factor": 0.5}, {"op": "normalize", "mean": 0.25, "std": 2.0}]
    evaluate(runtime, (raw * 255).astype(np.uint8), targets, preprocessing=steps, metric=Metric())
    np.testing.assert_allclose(runtime.batches[0], ((raw * 255) * 0.5 - 0.25) / 2.0, rtol=1e-6)


@pytest.mark.parametrize(("raw", "targets"), [(0, 0), (5, 4)])
def test_samples_need_targets(raw, targets):
    with pytest.raises(QDeployError, match=f"found {raw} and {targets}"):
        evaluate(Scores(), np.zeros((raw, 10)), np.zeros(targets), preprocessing=[], metric=Metric())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_answer_that_is_no_number_is_an_error(value):
    raw, targets = scores(10, 1.0)
    raw[7, 3] = value
    with pytest.raises(QDeployError, match="NaN or infinite"):
        evaluate(Scores(), raw, targets, preprocessing=[], metric=Metric())


def test_the_interval_is_the_binomial_one():
    raw, targets = scores(2000, 0.8)
    metric = evaluate(Scores(), raw, targets, preprocessing=[], metric=Metric()).metric
    deviation = np.sqrt(0.8 * 0.2 / 2000)
    assert metric.low == pytest.approx(0.8 - 1.96 * deviation, abs=0.2 * deviation)
    assert metric.high == pytest.approx(0.8 + 1.96 * deviation, abs=0.2 * deviation)
    again = evaluate(Scores(), raw, targets, preprocessing=[], metric=Metric()).metric
    assert again == metric  # a report does not change when it is made again


def test_an_interval_without_spread():
    raw, targets = scores(50, 1.0)
    metric = evaluate(Scores(), raw, targets, preprocessing=[], metric=Metric()).metric
    assert (metric.low, metric.value, metric.high) == (1.0, 1.0, 1.0)


def test_intervals_cover_the_truth_about_95_times_in_100():
    """Of differences between two models on the same samples, where the truth is known."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        hard = rng.uniform(size=400)
        baseline = (hard < 0.8).astype(np.float64)
        found = np.where(rng.uniform(size=400) < 0.05, 1 - baseline, baseline)  # flips one answer in twenty
        covered += not difference(found, baseline, Metric()).excludes(-0.05 * (0.8 - 0.2))
    assert covered >= 52


@pytest.mark.parametrize(("samples", "least"), [(10, 0.9), (5, 0.87)])
def test_intervals_of_few_samples_cover_the_truth_too(samples, least):
    """Of ten samples in 138 of these 150 draws; plain percentiles of a bootstrap do in 131. Reports say so of five."""

    class Mean(Metric):
        def value(self, rows):
            return float(rows.mean())

    rng = np.random.default_rng(0)
    drawn = [difference(rng.normal(size=samples), np.zeros(samples), Mean()) for _ in range(150)]
    assert sum(not found.excludes(0) for found in drawn) >= least * 150


def test_decisions_that_nobody_asked_for_do_not_count():
    """Images are padded to one size, with targets of NaN."""
    targets = np.full((2, 1, 4, 4), 0.5, np.float32)
    targets[:, :, 2:] = np.nan
    raw = np.random.default_rng(0).uniform(size=targets.shape).astype(np.float32)
    found = [judge(lambda x, shift=shift: x + shift, raw, targets, metric=Psnr()) for shift in (0, np.float32(0.1))]
    assert found[0].decisions.shape == (16,)
    assert agreement(found[0].decisions, found[0].decisions) == 1
    assert agreement(found[0].decisions, found[1].decisions) < 0.2


def test_a_paired_difference_is_narrower_than_an_unpaired_one():
    baseline = rows(1000, 0.8)
    found = baseline.copy()
    found[:5] = 1 - found[:5]
    paired = difference(found, baseline, Metric())
    unpaired = difference(found, np.random.default_rng(1).permutation(baseline), Metric())
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.low <= paired.value <= paired.high
    assert paired.high - paired.low < 0.25 * (unpaired.high - unpaired.low)


def test_a_real_difference_excludes_zero_and_chance_does_not():
    baseline = rows(1000, 0.8)
    worse = baseline.copy()
    worse[np.flatnonzero(baseline)[:30]] = 0
    assert difference(worse, baseline, Metric()).excludes(0)
    assert not difference(baseline, baseline, Metric()).excludes(0)
    swapped = baseline.copy()
    swapped[[np.flatnonzero(baseline)[0], np.flatnonzero(baseline == 0)[0]]] = 0, 1
    assert not difference(swapped, baseline, Metric()).excludes(0)


def test_a_difference_is_over_the_same_samples():
    with pytest.raises(QDeployError, match="same samples"):
        difference(rows(10, 0.5), rows(11, 0.5), Metric())


def test_a_gap_is_over_other_samples_and_has_their_interval():
    """The interval of two independent shares, which is wider than that of paired ones: 1.96 standard errors."""
    found = gap(rows(2000, 0.9), rows(500, 0.8, seed=1), Metric())
    error = 1.96 * (0.9 * 0.1 / 2000 + 0.8 * 0.2 / 500) ** 0.5
    assert found.value == pytest.approx(rows(2000, 0.9).mean() - rows(500, 0.8, seed=1).mean())
    assert found.high - found.low == pytest.approx(2 * error, rel=0.1)
    same = gap(rows(500, 0.8), rows(500, 0.8), Metric())
    assert same.value == 0
    assert same.low < 0 < same.high


def test_agreement_counts_equal_decisions():
    assert agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4])) == 0.75


def test_evaluating_imports_no_torch():
    code = """
    import sys

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("torch", "torchvision", "lightning_fabric"):
                raise ImportError(f"{name} is not on a device")

    sys.meta_path.insert(0, Blocker())
    import numpy as np
    from qdeploy.metrics.top1 import Metric
    from qdeploy.runtimes.onnxruntime import Runtime
    from qdeploy.verify.evaluate import evaluate
    from tests.bundles import STEPS, integer_model

    runtime = Runtime(integer_model(), threads=1)
    raw = np.random.default_rng(0).integers(0, 256, (20, 8, 8)).astype(np.uint8)
    found = evaluate(runtime, raw, np.arange(20) % 10, preprocessing=STEPS, metric=Metric())
    assert found.metric.samples == 20
    assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
