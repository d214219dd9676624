"""The range with the least information lost: Kullback-Leibler divergence of the quantized from the real distribution.

The criterion of TensorRT (S. Migacz, "8-bit inference with TensorRT", GTC 2017, slides 32-37). For a candidate
range, P is the histogram inside it, with the values outside folded into its end bins; Q is the histogram inside it
(without those), merged into one bin for each code and spread evenly again over the bins in which P is not zero; the
range with the smallest KL(P || Q) wins. Migacz shrinks one threshold on absolute values. Here both ends move, the
bins are merged along the real cells of the scheme's grid, and the exact zeros that ReLU leaves are no part of P: they
are represented exactly by every candidate, while their spike would favour the smallest range (the reason why several
implementations overwrite the first bin).
"""

from __future__ import annotations

import numpy as np

from qdeploy.core.scheme import QScheme
from qdeploy.quant.histogram import StreamingHistogram
from qdeploy.quant.observers._base import HistogramObserver
from qdeploy.quant.observers._cells import Float64, Masses, accumulated, levels, midpoints
from qdeploy.quant.observers._search import best_range

EMPTY = 1e-4  # the count that smooths an empty cell, as in MXNet's and onnxruntime's entropy calibration
MOST_CLIPPED = 0.1  # of the values that are not 0: when P is mostly folded outliers, a small KL says nothing


class Observer(HistogramObserver):
    """Minimises KL(P || Q), with cells at least as wide as the histogram's bins (as Migacz: one bin for each code)."""

    def _choose(self, histogram: StreamingHistogram) -> tuple[float, float]:
        masses = Masses.of(histogram)
        low, high = min(histogram.min, 0.0), max(histogram.max, 0.0)
        # The smallest range whose cells are a bin wide; with a full range of that size there is nothing to choose.
        smallest = self.scheme.levels * histogram.width / (high - low)
        if smallest >= 1.0:
            return histogram.min, histogram.max

        def cost(lows: Float64, highs: Float64) -> Float64:
            wide = highs - lows >= smallest * (high - low)
            costs = np.full(lows.shape, np.inf)
            costs[wide] = divergence(masses, lows[wide], highs[wide], self.scheme)
            return costs

        two_sided = low < 0.0 < high
        return best_range(cost, low, high, smallest=min(smallest, 0.5), coarse=32 if two_sided else 512)


def divergence(masses: Masses, lows: Float64, highs: Float64, scheme: QScheme) -> Float64:
    """KL(P || Q) in nats for each of K candidate ranges, float64 [K].

    With p_i the counts of P, n_j the count inside cell j and m_j the number of its bins in which P is not zero,
    Q_i = n_j / m_j, and KL = sum_i p_i log p_i / P - log P - sum_j P_j / P (log n_j - log m_j - log N), where P and N
    are the totals and P_j is P's count in cell j. Outliers folded into an empty cell meet n_j = EMPTY; a range that
    clips more than MOST_CLIPPED of the values has an infinite divergence.
    """
    counts, below = masses.counts, accumulated(masses.counts)
    total = below[-1]
    cuts = np.searchsorted(masses.values, _boundaries(levels(lows, highs, scheme)))
    left, right = below[cuts[:, 0]], total - below[cuts[:, -1]]
    first, last = np.minimum(cuts[:, 0], counts.size - 1), np.maximum(cuts[:, -1] - 1, 0)  # the end bins

    inside = np.diff(below[cuts], axis=1)  # n_j
    occupied = np.diff(accumulated(counts > 0)[cuts], axis=1)  # m_j
    occupied[:, 0] += (left > 0) & (counts[first] == 0)
    occupied[:, -1] += (right > 0) & (counts[last] == 0)
    folded = inside.copy()  # P_j
    folded[:, 0] += left
    folded[:, -1] += right

    entropy = np.diff(accumulated(_xlogx(counts))[cuts[:, [0, -1]]], axis=1)[:, 0]  # sum of p_i log p_i
    entropy += _xlogx(counts[first] + left) - _xlogx(counts[first])
    entropy += _xlogx(counts[last] + right) - _xlogx(counts[last])
    cross = (folded * np.log(np.maximum(inside, EMPTY) / np.maximum(occupied, 1.0))).sum(axis=1)
    kl = (entropy - cross) / total - np.log(total) + np.log(np.maximum(inside.sum(axis=1), EMPTY))
    return np.where(left + right > MOST_CLIPPED * total, np.inf, kl)


def _boundaries(grid: Float64) -> Float64:
    """The cells' ends: the midpoints, and half a step beyond the outermost levels. [K, L] -> [K, L + 1]."""
    low = grid[:, :1] - (grid[:, 1:2] - grid[:, :1]) / 2
    high = grid[:, -1:] + (grid[:, -1:] - grid[:, -2:-1]) / 2
    return np.hstack([low, midpoints(grid), high])


def _xlogx(x: Float64) -> Float64:
    return x * np.log(np.maximum(x, 1.0))  # of counts, which are 0 or at least 1
