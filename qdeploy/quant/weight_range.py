"""Symmetric per-channel scales of weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.affine import SMALLEST_SCALE
from qdeploy.core.errors import QDeployError, nearest
from qdeploy.core.scheme import QScheme
from qdeploy.quant.codes import nearest_codes
from qdeploy.quant.finite import refusal

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

OBSERVERS = ("minmax", "mse")

# Fractions of the minmax scale that the mse search tries. Down to one in twenty, for binary codebooks: their best
# scale is the mean magnitude of a channel. Then finer ones, between the neighbours of the best.
COARSE = np.geomspace(1.0, 0.05, 60)
FINE = COARSE[1] ** np.linspace(-1, 1, 11)

BLOCK = 1 << 16  # weights searched at a time, so that temporaries stay in a core's cache


def symmetric_scale(weight: NDArray[Any], scheme: QScheme, *, observer: str = "minmax") -> Float32:
    """A scale for each output channel, with zero point 0: weight [C_out, ...] -> float32 [C_out].

    "minmax" maps the largest magnitude of a channel to the highest code. "mse" shrinks that scale to the one with the
    least squared error of nearest rounding; it is never worse than minmax. Every scale is a positive, normal float32.
    A channel of subnormal weights gets the smallest such scale. An all-zero channel gets the largest scale of the
    tensor (1/qmax if all channels are zero), because its bias is still quantized in steps of it; where 0 is not in
    the codebook, a millionth of that.

    QDeployError: NaN or infinite weights, an unknown observer, a scheme of unsigned codes.
    """
    if observer not in OBSERVERS:
        raise QDeployError(f"Weights have no observer {observer!r}.", nearest(observer, OBSERVERS))
    if not scheme.signed:
        raise QDeployError("Weights with zero point 0 need signed codes.", "Use core.scheme.weight(bits).")
    rows = np.asarray(weight, np.float32).reshape(len(weight), int(np.prod(weight.shape[1:])))
    if not np.isfinite(rows).all():
        nan = int(np.isnan(rows).sum())
        raise refusal(nan, int(np.isinf(rows).sum()), f"among the {rows.size:,} of the weight")
    full = _full_scale(np.abs(rows).max(axis=1, initial=0.0).astype(np.float64), scheme)
    if observer == "minmax" or rows.size == 0:
        return full
    size = max(1, BLOCK // rows.shape[1])
    starts = range(0, len(rows), size)
    return np.concatenate([_least_error(rows[i : i + size], full[i : i + size], scheme) for i in starts])


def _full_scale(reach: Float64, scheme: QScheme) -> Float32:
    """The minmax scale of channels whose largest magnitudes are ``reach``, float32 [C]."""
    highest = scheme.qmax or -scheme.qmin  # one signed bit has the codes -1 and 0
    scale = np.maximum(reach / highest, SMALLEST_SCALE)
    instead = scale.max(initial=SMALLEST_SCALE) if reach.any() else 1.0 / highest
    if scheme.codebook is not None and 0 not in scheme.codebook:
        instead = max(instead * 1e-6, SMALLEST_SCALE)
    return np.where(reach > 0, scale, instead).astype(np.float32)


def _least_error(rows: Float32, full: Float32, scheme: QScheme) -> Float32:
    """The best scale of each row among fractions of ``full``, in ties the largest: [C, K], [C] -> float32 [C]."""
    best, least = full, _squared_error(rows, full, scheme)
    for fractions in (COARSE[1:], FINE):
        centre = best
        for fraction in fractions:
            scale = np.clip(centre * np.float32(fraction), np.float32(SMALLEST_SCALE), full)
            error = _squared_error(rows, scale, scheme)
            best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return np.where(_exact_error(rows, best, scheme) < _exact_error(rows, full, scheme), best, full)


def _exact_error(rows: Float32, scale: Float32, scheme: QScheme) -> Float64:
    """The summed squared error of the weights as they ship, in float64: what the search approximates in float32."""
    real = nearest_codes(rows / scale[:, None], scheme) * scale[:, None].astype(np.float64)
    errors: Float64 = np.square(real - rows).sum(axis=1)
    return errors


def _squared_error(rows: Float32, scale: Float32, scheme: QScheme) -> Float64:
    """The summed squared error of nearest rounding, to float32's precision: [C, K], [C] -> float64 [C]."""
    steps = rows / scale[:, None]
    steps -= nearest_codes(steps, scheme)
    # In steps, at most 20 times the highest code, no square leaves float32; in weights it might.
    errors: Float64 = np.einsum("ck,ck->c", steps, steps) * scale.astype(np.float64) ** 2
    return errors
