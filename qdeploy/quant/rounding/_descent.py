"""Coordinate descent on codes: change one code at a time to what is best beside all others, until nothing changes.

With the others fixed, the error of a channel is a parabola in one code, so its best code is the one nearest to the
parabola's minimum (Behdin et al., "QuantEase", arXiv:2309.01885, lemma 1). No step makes a channel worse.
"""

from __future__ import annotations

import numpy as np

from qdeploy.quant.codes import nearest_codes
from qdeploy.quant.rounding._layer import Float64, Layer

# Added to the diagonal: an input that is always 0 gets its nearest code, and the moment's rounding errors no say.
DAMPING = 1e-6
BLOCK = 128  # columns whose changes reach the others' gradients in one product


def descend(layer: Layer, codes: Float64, *, sweeps: int) -> Float64:
    """Codes from which no change of a single one is better, or as far as ``sweeps`` over all columns come.

    ``codes`` [groups, R, K] is the start and stays as it is. Memory: a few times that of the moment.
    """
    codes, moment = codes.copy(), layer.damped(DAMPING)
    diagonal = np.diagonal(moment, axis1=1, axis2=2)
    gradient = (codes - layer.steps) @ moment
    for _ in range(sweeps):
        before = codes.copy()
        for start in range(0, codes.shape[-1], BLOCK):
            block = slice(start, start + BLOCK)
            local = gradient[..., block].copy()
            _sweep(layer, codes[..., block], local, moment[:, block, block], diagonal[:, block])
            gradient += (codes[..., block] - before[..., block]) @ moment[:, block]
        if np.array_equal(codes, before):
            break
    return codes


def _sweep(layer: Layer, codes: Float64, gradient: Float64, moment: Float64, diagonal: Float64) -> None:
    """One pass over a block's columns, in place."""
    for j in range(codes.shape[-1]):
        old = codes[..., j]
        new = nearest_codes(old - gradient[..., j] / diagonal[:, None, j], layer.scheme)
        change = new - old
        codes[..., j] = new
        group, row = np.nonzero(change)
        if len(group):
            gradient[group, row] += change[group, row, None] * moment[group, j]
