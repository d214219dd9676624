"""Weights with which no CPU's products saturate, at the full width: only the channels that must give way do.

Where a rounded channel breaks the rule of core/saturation.py, it gets the scale, up to twice its own, and the codes
with the least error of the layer's output among those that keep the rule: offending pairs are cut, and other weights of
the channel make up for what that costs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qdeploy.core import saturation
from qdeploy.core.scheme import QScheme
from qdeploy.quant.codes import nearest_codes
from qdeploy.quant.pairs import codes_below, limit_pairs
from qdeploy.quant.rounding._descent import PairLimit, descend
from qdeploy.quant.rounding._layer import Float64, Layer

Float32 = NDArray[np.float32]

FRACTIONS = np.geomspace(1.0, 2.0, 25)  # of a scale: at twice the scale no code is over 64, and no pair over the limit
SWEEPS = 8
WORK = 2 * 10**9  # multiplications for judging the codes of a layer by its output
COARSE = 3  # every third fraction is tried where that is too few for all


def breaks(codes: NDArray[Any], limit: int | None) -> bool:
    """Whether a pair of the codes [C_out, ...] sums to more than ``limit``."""
    return limit is not None and bool((saturation.pair_sums(codes) > limit).any())


def constrain(
    weight: Float32, codes: NDArray[Any], scale: Float32, scheme: QScheme, limit: int,
    second_moment: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], Float32]:  # fmt: skip
    """Codes and scales [C_out] that keep the rule, those of offending channels anew and all others as they are.

    ``weight`` [C_out, ...] is what the ``codes`` stand for, ``second_moment`` as rounding plugins take it: without it,
    the error is that of the weights.
    """
    offending = np.flatnonzero((saturation.pair_sums(codes) > limit).any(axis=1))
    if second_moment is not None and second_moment.ndim == 3 and len(second_moment) > 1:
        rows = np.arange(len(weight))  # the channels of a group share a moment
    else:
        rows = offending
    new, wider = _best(weight[rows], scale[rows], scheme, limit, second_moment)
    chosen = np.isin(rows, offending)
    codes, scale = codes.copy(), scale.copy()
    codes[rows[chosen]], scale[rows[chosen]] = new[chosen], wider[chosen]
    return codes, scale


def _best(
    weight: Float32, scale: Float32, scheme: QScheme, limit: int, second_moment: NDArray[Any] | None
) -> tuple[NDArray[Any], Float32]:
    """Codes of all channels [C_out, ...] that keep the rule, and their scales."""
    rows, size = len(weight), math.prod(weight.shape[1:])
    affordable = 0 if second_moment is None else WORK // max(rows * size**2, 1)
    least, best, wider = np.full(rows, np.inf), np.zeros(weight.shape), scale
    for fractions in _candidates(weight, scale, scheme, limit, second_moment, affordable):
        tried = (scale * fractions).astype(np.float32)
        codes, steps = _limited(weight, tried, scheme, limit)
        if second_moment is None:  # a layer so wide that no matrix of its weights by its weights fits memory
            error = np.square(steps - codes).reshape(rows, -1).sum(axis=1)
        else:
            layer = Layer.of(weight, tried, scheme, second_moment)
            error = layer.error(codes.reshape(layer.steps.shape)).reshape(-1)
        error *= tried.astype(np.float64) ** 2
        better = error < least
        best[better], least = codes[better], np.minimum(error, least)
        wider = np.where(better, tried, wider)
    if second_moment is not None:
        layer = Layer.of(weight, wider, scheme, second_moment)
        below = np.array(codes_below(scheme, limit), np.float64)
        rule = PairLimit(limit, saturation.partners(weight.shape), below)
        sweeps = min(SWEEPS, max(1, affordable))
        best = descend(layer, best.reshape(layer.steps.shape), sweeps=sweeps, limit=rule).reshape(weight.shape)
    return best.astype(scheme.dtype), wider


def _candidates(
    weight: Float32, scale: Float32, scheme: QScheme, limit: int, second_moment: NDArray[Any] | None, affordable: int
) -> NDArray[Any]:
    """The fractions of its scale to try for each channel, [tries, C_out].

    All, where the layer is small enough; of a large one, a few that are best if its inputs were independent.
    """
    every = np.repeat(FRACTIONS[:, None], len(scale), axis=1)
    if affordable >= len(FRACTIONS):
        return every
    every = every[::COARSE]
    if second_moment is None:
        return every
    power = np.diagonal(second_moment, axis1=-2, axis2=-1).reshape(-1, 1, math.prod(weight.shape[1:]))
    errors = []
    for fractions in every:
        tried = (scale * fractions).astype(np.float32)
        codes, steps = _limited(weight, tried, scheme, limit)
        squares = np.square(steps - codes).reshape(len(power), -1, power.shape[-1]) * power
        errors.append(squares.sum(axis=-1).reshape(-1) * tried.astype(np.float64) ** 2)
    order = np.argsort(errors, axis=0, kind="stable")[: max(2, affordable)]
    return np.take_along_axis(every, order, axis=0)


def _limited(weight: Float32, scale: Float32, scheme: QScheme, limit: int) -> tuple[Float64, Float64]:
    """The nearest codes, cut to the limit, and the steps that they round: both [C_out, ...]."""
    steps = weight.astype(np.float64) / scale.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
    codes = limit_pairs(torch.from_numpy(nearest_codes(steps, scheme)), torch.from_numpy(steps), scheme, limit)
    return codes.numpy(), steps
