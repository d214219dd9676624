"""The coefficients of statistics-aware weight binning, fitted as the paper fits them.

Choi et al., "Bridging the Accuracy Gap for 2-bit Quantized Neural Networks (QNN)", arXiv:1807.06964, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

POINTS = 8192  # at which a density is sampled
TAIL = 30.0  # of the densities without an end, in their scales: beyond it they weigh nothing

# The densities of |w| for the paper's six distributions, up to a factor, each with the end of its support.
DENSITIES: dict[str, tuple[Callable[[Float64], Float64], float]] = {
    "gaussian": (lambda x: np.exp(-(x**2) / 2), TAIL),
    "uniform": (lambda x: np.ones_like(x), 1.0),
    "laplace": (lambda x: np.exp(-x), TAIL),
    "logistic": (lambda x: np.cosh(x / 2) ** -2.0, TAIL),
    "triangle": (lambda x: 1.0 - x, 1.0),
    "von mises": (lambda x: np.exp(np.cos(x)), np.pi),
}


@lru_cache
def coefficients(levels: int) -> tuple[float, float]:
    """(c1, c2) of the clipping value c1 * sqrt(E[w**2]) - c2 * E[|w|], the paper's eq. 5, for that many levels.

    The levels are evenly spaced from minus to plus the clipping value: an odd number of them has 0 among them. For
    each distribution the clipping value with the least squared error is searched; c1 and c2 are the line through
    those six values over E[|w|] against sqrt(E[w**2]) / E[|w|], in least squares.
    """
    spread, best = [], []
    for density, end in DENSITIES.values():
        x = (np.arange(POINTS, dtype=np.float64) + 0.5) * (end / POINTS)
        mass = density(x) / density(x).sum()
        mean = mass @ x
        spread.append(np.sqrt(mass @ x**2) / mean)
        best.append(_best_clip(x, mass, levels) / mean)
    slope, intercept = np.polyfit(spread, best, 1)
    return float(slope), float(-intercept)


def _best_clip(x: Float64, mass: Float64, levels: int) -> float:
    """The clipping value with the least squared error for magnitudes ``x`` of probabilities ``mass``."""
    best = width = float(x[-1] / 2)
    for _ in range(4):
        candidates = np.linspace(best - width, best + width, 65)[1:]
        best = float(candidates[np.argmin([mass @ (x - _nearest(x, clip, levels)) ** 2 for clip in candidates])])
        width /= 16
    return best


def _nearest(x: Float64, clip: float, levels: int) -> Float64:
    """The level nearest to each of ``x`` >= 0 among ``levels`` evenly spaced ones in -clip..clip."""
    step = 2 * clip / (levels - 1)
    offset = 0.0 if levels % 2 else 0.5
    return np.minimum((np.rint(x / step - offset) + offset) * step, clip)
