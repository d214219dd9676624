"""A coarse-to-fine search for the range that minimises a cost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Cost = Callable[[Float64, Float64], Float64]  # lows [K], highs [K] -> costs [K]


def best_range(
    cost: Cost, low: float, high: float, *, smallest: float, coarse: int, rounds: int = 3
) -> tuple[float, float]:
    """The (low, high) with the smallest cost among shrunken forms of the full range ``low`` <= 0 <= ``high``.

    Each end is multiplied by fractions between ``smallest`` and 1, evenly spaced in their logarithm (and the lower
    and upper end by 0 as well): ``coarse`` of them for each end that is not 0, in all combinations, then finer ones
    around the best. A combined search finds what moving one end at a time misses: with zero exactly representable,
    the best low depends on high. Of equal costs the wider range wins; the full range is the first candidate.
    """
    step = smallest ** (1.0 / (coarse - 1))  # the ratio of neighbouring fractions
    spread = np.append(step ** np.arange(coarse), 0.0)
    fixed = np.ones(1)
    low_fractions, high_fractions = spread if low else fixed, spread if high else fixed
    best, best_cost = (1.0, 1.0), np.inf
    for _ in range(rounds + 1):
        lows, highs = (axis.ravel() for axis in np.meshgrid(low_fractions, high_fractions, indexing="ij"))
        usable = lows * low != highs * high  # not the empty range
        lows, highs = lows[usable], highs[usable]
        costs = cost(lows * low, highs * high)
        at = int(np.argmin(costs))
        if costs[at] < best_cost:
            best, best_cost = (float(lows[at]), float(highs[at])), float(costs[at])
        around = step ** np.linspace(-1, 1, 9)
        low_fractions = np.minimum(best[0] * around, 1.0) if low else fixed
        high_fractions = np.minimum(best[1] * around, 1.0) if high else fixed
        step **= 0.25  # nine points over two old steps
    return best[0] * low, best[1] * high
