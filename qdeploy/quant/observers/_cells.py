"""The cells that many candidate quantizers cut a histogram into, all candidates at once.

Every criterion that searches for a range needs sums over the values that round to the same code. With the values
sorted and their sums accumulated once, a candidate costs one look-up for each code, whatever the number of bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.affine import qparams
from qdeploy.core.scheme import QScheme
from qdeploy.quant.histogram import StreamingHistogram

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Masses:
    """A histogram as point masses: ``values`` (sorted) and ``counts``, float64 [B] each.

    Exact zeros are left out. Every candidate represents 0 exactly, so they have no error; and the spike that ReLU
    leaves at 0 would otherwise pass for the shape of the distribution around it.
    """

    values: Float64
    counts: Float64

    @classmethod
    def of(cls, histogram: StreamingHistogram) -> Masses:
        """The point masses at the centres of the histogram's bins."""
        counts = histogram.counts.copy()
        counts[histogram.edges[:-1] == 0.0] -= histogram.zeros
        return cls(histogram.centres, counts.astype(np.float64))


def levels(lows: Float64, highs: Float64, scheme: QScheme) -> Float64:
    """The real values that the quantizers of the ranges can represent, ascending: [K], [K] -> [K, levels]."""
    codes = np.asarray(scheme.codebook or range(scheme.qmin, scheme.qmax + 1), np.float64)
    pairs = [qparams(low, high, scheme) for low, high in zip(lows.tolist(), highs.tolist(), strict=True)]
    scales, zero_points = np.array(pairs, np.float64).T
    values: Float64 = (codes - zero_points[:, None]) * scales[:, None]
    return values


def midpoints(grid: Float64) -> Float64:
    """Where rounding to nearest passes from one level to the next: [K, levels] -> [K, levels - 1]."""
    return (grid[:, 1:] + grid[:, :-1]) / 2


def squared_error(masses: Masses, lows: Float64, highs: Float64, scheme: QScheme) -> Float64:
    """The summed squared error of quantizing the masses with each of K ranges, rounding and clipping: float64 [K]."""
    grid = levels(lows, highs, scheme)
    zeroth, first, second = (accumulated(masses.counts * masses.values**power) for power in range(3))
    # sum (v - r)^2 n over a cell = sum v^2 n - 2 r sum v n + r^2 sum n. A value on a midpoint errs equally both ways.
    cuts = np.searchsorted(masses.values, midpoints(grid))
    ends = np.zeros((len(grid), 1), cuts.dtype)
    cuts = np.concatenate([ends, cuts, ends + masses.values.size], axis=1)
    linear = (grid * np.diff(first[cuts], axis=1)).sum(axis=1)
    quadratic = (grid**2 * np.diff(zeroth[cuts], axis=1)).sum(axis=1)
    costs: Float64 = np.maximum(second[-1] - 2 * linear + quadratic, 0.0)
    return costs


def accumulated(x: NDArray[Any]) -> Float64:
    """The sums of the first 0, 1, ... n values: [n] -> float64 [n + 1]."""
    return np.concatenate([[0.0], np.cumsum(x)])
