"""Coordinate descent on codes: change one code at a time to what is best beside all others, until nothing changes.

With the others fixed, the error of a channel is a parabola in one code, so its best code is the one nearest to the
parabola's minimum (Behdin et al., "QuantEase", arXiv:2309.01885, lemma 1). No step makes a channel worse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qdeploy.quant.codes import nearest_codes
from qdeploy.quant.rounding._layer import Float64, Layer

# Added to the diagonal: an input that is always 0 gets its nearest code, and the moment's rounding errors no say.
DAMPING = 1e-6
BLOCK = 128  # columns whose changes reach the others' gradients in one product


@dataclass(frozen=True, slots=True)
class PairLimit:
    """Keeps pairs of one sign from summing to more than ``limit``; see core/saturation.py.

    ``partner`` [K] is the column of the other one of each pair, K for none; ``below`` [limit + 1] the largest code that
    does not exceed a number.
    """

    limit: int
    partner: NDArray[np.intp]
    below: Float64

    def applied(self, column: int, new: Float64, codes: Float64) -> Float64:
        """``new`` codes [groups, R] for a column of ``codes`` [groups, R, K], cut to what their partners leave."""
        if self.partner[column] == codes.shape[-1]:
            return new
        other = codes[..., self.partner[column]]
        over = (new * other > 0) & (np.abs(new + other) > self.limit)
        room = self.below[(self.limit - np.abs(other)).astype(np.intp)]
        return np.where(over, np.copysign(room, new), new)


def descend(layer: Layer, codes: Float64, *, sweeps: int, limit: PairLimit | None = None) -> Float64:
    """Codes from which no change of a single one is better, or as far as ``sweeps`` over all columns come.

    ``codes`` [groups, R, K] is the start and stays as it is; with a ``limit``, all of its pairs are within, and those
    of the result. Memory: a few times that of the moment.
    """
    codes, moment = codes.copy(), layer.damped(DAMPING)
    diagonal = np.diagonal(moment, axis1=1, axis2=2)
    gradient = (codes - layer.steps) @ moment
    for _ in range(sweeps):
        before = codes.copy()
        for start in range(0, codes.shape[-1], BLOCK):
            block = slice(start, start + BLOCK)
            local = gradient[..., block].copy()
            _sweep(layer, codes, start, local, moment[:, block, block], diagonal[:, block], limit)
            gradient += (codes[..., block] - before[..., block]) @ moment[:, block]
        if np.array_equal(codes, before):
            break
    return codes


def _sweep(
    layer: Layer, codes: Float64, start: int, gradient: Float64, moment: Float64, diagonal: Float64,
    limit: PairLimit | None,
) -> None:  # fmt: skip
    """One pass over the columns of a block that begins at ``start``, in place."""
    for j in range(gradient.shape[-1]):
        old = codes[..., start + j]
        new = nearest_codes(old - gradient[..., j] / diagonal[:, None, j], layer.scheme)
        if limit is not None:
            new = limit.applied(start + j, new, codes)
        change = new - old
        codes[..., start + j] = new
        group, row = np.nonzero(change)
        if len(group):
            gradient[group, row] += change[group, row, None] * moment[group, j]
