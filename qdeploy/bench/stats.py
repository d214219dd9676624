"""What a row of times says, and how sure one may be: percentiles and bootstrap intervals.

Times are not independent. Within a block they share the clock frequency and the neighbours; within a process they
share where its memory lies, which alone moves a median by half a per cent or so. So a bundle is measured in several
processes, in several blocks each, and whole processes are what the bootstrap resamples (blocks, where there is only
one process). Process i and block j of every bundle ran in the same round: a ratio resamples both bundles alike, and
what slowed down a whole round cancels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.records import Interval

PROCESSES = 5
RESAMPLES = 1000
POINTS = 512  # order statistics that stand for a process or block: plenty for a median, whatever the number of calls
SEED = 0
# Five processes are few, and percentiles of a bootstrap ignore that: Student's t with four degrees of freedom over
# the normal distribution's 1.96, times sqrt(5 / 4) for the variance that resampling five loses.
WIDENING = 2.776 / 1.960 * (5 / 4) ** 0.5

Times = NDArray[np.int64]
Floats = NDArray[np.float64]
Blocks = Sequence[Sequence[Times]]  # [process][block]; as many blocks in every process


def percentiles(blocks: Blocks, levels: Sequence[float]) -> list[float]:
    """Percentiles (0..100) of all calls together, in the unit of the times."""
    return [float(value) for value in np.percentile(np.concatenate(_flat(blocks)), levels)]


def median_interval(blocks: Blocks) -> Interval:
    """The median of all calls with its 95% bootstrap interval."""
    return _interval(percentiles(blocks, [50])[0], resampled_medians(blocks), len(blocks))


def ratio_interval(numerator: Blocks, denominator: Blocks) -> Interval:
    """The ratio of two medians with its 95% bootstrap interval; both were measured in the same rounds."""
    value = percentiles(numerator, [50])[0] / percentiles(denominator, [50])[0]
    return _interval(value, resampled_medians(numerator) / resampled_medians(denominator), len(numerator))


def resampled_medians(blocks: Blocks) -> Floats:
    """The median of all calls in each of RESAMPLES draws of as many processes (of one: blocks), [RESAMPLES].

    The draws depend on the number of processes or blocks only, so two bundles of one run get the same ones.
    """
    units = [np.concatenate(process) for process in blocks] if len(blocks) > 1 else list(blocks[0])
    draws = np.random.default_rng(SEED).integers(0, len(units), (RESAMPLES, len(units)))
    values, weights, owner = _sketch(units)
    medians = np.empty(RESAMPLES)
    for i, draw in enumerate(draws):
        counts = np.bincount(draw, minlength=len(units))
        cumulative = np.cumsum(weights * counts[owner])
        medians[i] = values[np.searchsorted(cumulative, cumulative[-1] / 2)]
    return medians


def _sketch(units: Sequence[Times]) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Up to POINTS order statistics a unit, all sorted: (values, calls that each stands for, its unit)."""
    values, weights, owner = [], [], []
    for index, unit in enumerate(units):
        ordered = np.sort(unit).astype(np.float64)
        points = min(POINTS, len(ordered))
        values.append(ordered[((np.arange(points) + 0.5) * len(ordered) / points).astype(np.int64)])
        weights.append(np.full(points, len(ordered) / points))
        owner.append(np.full(points, index))
    order = np.argsort(np.concatenate(values), kind="stable")
    return np.concatenate(values)[order], np.concatenate(weights)[order], np.concatenate(owner)[order]


def _interval(value: float, resampled: Floats, processes: int) -> Interval:
    low, high = np.percentile(resampled, [2.5, 97.5])
    # Few and coarse points can leave the estimate outside its own resamples' percentiles.
    low, high = min(float(low), value), max(float(high), value)
    if processes > 1:
        low, high = value * (low / value) ** WIDENING, value * (high / value) ** WIDENING
    return Interval(value, low, high)


def _flat(blocks: Blocks) -> list[Times]:
    return [block for process in blocks for block in process]
