"""The deployed metric: the artifact, run over the whole evaluation split, in numpy and a runtime, without torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy import runner
from qdeploy.core.errors import QDeployError
from qdeploy.core.records import Interval, Metric

RESAMPLES = 2000
BATCH = 64


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One artifact's answers to every evaluation sample.

    ``rows`` [N, ...] is what each sample contributes to the metric, ``decisions`` what was decided: [N], or one for
    every target that is a number, where a sample has several. ``outputs_sha256`` is equal where every bit of all first
    outputs is.
    """

    metric: Metric
    rows: NDArray[np.float64]
    decisions: NDArray[Any]
    outputs_sha256: str


def evaluate(
    runtime: Any, raw: NDArray[Any], targets: NDArray[Any], *, preprocessing: Sequence[dict[str, Any]], metric: Any,
    batch: int = BATCH, progress: Callable[[int], None] | None = None,
) -> Evaluation:  # fmt: skip
    """Run raw samples [N, ...] through a runtime and score them against ``targets`` [N, ...].

    ``runtime`` is a runtime plugin's instance with one input; ``metric`` a metric plugin's instance. Every sample is
    preprocessed by the manifest's own steps, as on a device.
    """
    (name,) = runtime.inputs

    def answer(samples: NDArray[Any]) -> NDArray[Any]:
        outputs: dict[str, NDArray[Any]] = runtime.run({name: runner.preprocess(samples, list(preprocessing))})
        return outputs[runtime.outputs[0]]

    return judge(answer, raw, targets, metric=metric, batch=batch, progress=progress)


def judge(
    answer: Callable[[NDArray[Any]], NDArray[Any]], raw: NDArray[Any], targets: NDArray[Any], *, metric: Any,
    batch: int = BATCH, progress: Callable[[int], None] | None = None,
) -> Evaluation:  # fmt: skip
    """Score what ``answer`` gives for batches of raw samples, wherever it asks. QDeployError: NaN, no samples."""
    if len(raw) == 0 or len(raw) != len(targets):
        raise QDeployError(f"An evaluation needs samples and as many targets; found {len(raw)} and {len(targets)}.")
    rows, decisions, digest = [], [], hashlib.sha256()
    for start in range(0, len(raw), batch):
        outputs, wanted = answer(raw[start : start + batch]), targets[start : start + batch]
        if not np.all(np.isfinite(outputs)):
            raise QDeployError("The artifact answers with NaN or infinite values on evaluation samples.")
        digest.update(np.ascontiguousarray(outputs).data)
        rows.append(metric.prepare(outputs, wanted))
        decisions.append(_counted(metric.decisions(outputs), wanted))
        if progress is not None:
            progress(min(start + batch, len(raw)))
    every = np.concatenate(rows)
    low, high = _interval(lambda picks: metric.value(every[picks]), len(every))
    record = Metric(metric.name, metric.value(every), low, high, len(every), metric.higher_is_better)
    return Evaluation(record, every, np.concatenate(decisions), digest.hexdigest())


def batch_of(kernels: Iterable[str]) -> int:
    """How many samples a call may hold where an artifact of these kernels is judged: as many as cannot matter."""
    return 1 if runner.answers_alone(kernels) else BATCH


def fingerprint(raw: NDArray[Any], targets: NDArray[Any]) -> str:
    """The sha256 (hex) of a split: equal where every raw sample and every target is."""
    digest = hashlib.sha256()
    for array in (raw, targets):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def difference(found: NDArray[np.float64], baseline: NDArray[np.float64], metric: Any) -> Interval:
    """metric(found) - metric(baseline) on the same samples, with its paired bootstrap 95% interval.

    Both are resampled together, so that what makes a sample hard cancels out.
    """
    if len(found) != len(baseline):
        raise QDeployError("A difference is taken over the same samples.")
    low, high = _interval(lambda picks: metric.value(found[picks]) - metric.value(baseline[picks]), len(found))
    return Interval(metric.value(found) - metric.value(baseline), low, high)


def gap(found: NDArray[np.float64], other: NDArray[np.float64], metric: Any) -> Interval:
    """metric(found) - metric(other) on two splits, with the bootstrap 95% interval of independent samples."""
    drawn = [_resampled(partial(_of, metric, rows), len(rows), seed) for seed, rows in enumerate((found, other))]
    low, high = np.percentile(drawn[0] - drawn[1], _levels(min(len(found), len(other))))
    return Interval(metric.value(found) - metric.value(other), float(low), float(high))


def agreement(found: NDArray[Any], baseline: NDArray[Any]) -> float:
    """The share of decisions, one a sample or a pixel, in which both are the same."""
    return float(np.mean(found == baseline))


def _counted(decisions: NDArray[Any], targets: NDArray[Any]) -> NDArray[Any]:
    """Without those that nobody asked for: where targets have a NaN for each, as images have in their padding."""
    if decisions.shape == targets.shape and targets.dtype.kind == "f":
        asked: NDArray[Any] = decisions[~np.isnan(targets)]
        return asked
    return decisions


def _of(metric: Any, rows: NDArray[np.float64], picks: NDArray[np.intp]) -> float:
    return float(metric.value(rows[picks]))


def _interval(statistic: Callable[[NDArray[np.intp]], float], samples: int) -> tuple[float, float]:
    """The ends of a 95% interval from bootstrap resamples, with a fixed seed."""
    low, high = np.percentile(_resampled(statistic, samples), _levels(samples))
    return float(low), float(high)


def _levels(samples: int) -> tuple[float, float]:
    """Which percentiles of a bootstrap over ``samples`` are a 95% interval: 2.5 and 97.5, further apart for few.

    A bootstrap forgets that few samples know their own spread badly, and that resampling loses some of it: of 14, its
    2.5th to 97.5th percentiles hold the truth 92 times in a hundred and these 95; of 5, 83 and 90; of fewer, resamples
    do not reach far enough for any percentiles to do. These are expanded percentiles (Hesterberg 2015, section 5.1):
    those of Student's t times sqrt(n / (n - 1)), with t by its expansion in 1 / degrees (Abramowitz, Stegun 26.7.5).
    """
    degrees, normal = max(samples - 1, 1), NormalDist()
    z = normal.inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    t = sum(term / degrees**power for power, term in enumerate(terms))
    low = 100 * normal.cdf(-t * math.sqrt((degrees + 1) / degrees))
    return low, 100 - low


def _resampled(statistic: Callable[[NDArray[np.intp]], float], samples: int, seed: int = 0) -> NDArray[np.float64]:
    """A statistic of RESAMPLES bootstrap draws of the sample indices, [RESAMPLES]."""
    generator = np.random.default_rng(seed)
    return np.array([statistic(generator.integers(0, samples, samples)) for _ in range(RESAMPLES)])
