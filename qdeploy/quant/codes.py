"""Rounding to the nearest code of a scheme: the one definition that searches and rounding solvers share."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.scheme import QScheme

Real = TypeVar("Real", np.float32, np.float64)


def nearest_codes(steps: NDArray[Real], scheme: QScheme) -> NDArray[Real]:
    """The code nearest to each of ``steps``, which are real values over their scale; same shape and float dtype.

    Half-way values go to the even code, as in ONNX. Half-way between two codes of a codebook, whose distances differ,
    they go to the one nearer zero, and to the positive one half-way between -c and c. The zero point is 0.
    """
    if scheme.codebook is None:
        codes = np.rint(steps)
        np.clip(codes, scheme.qmin, scheme.qmax, out=codes)
        return codes
    codebook: NDArray[Real] = np.asarray(scheme.codebook, steps.dtype)
    middles = (codebook[1:] + codebook[:-1]) / 2
    lower, upper = np.searchsorted(middles, steps, side="left"), np.searchsorted(middles, steps, side="right")
    return codebook[np.where(steps > 0, lower, upper)]


def neighbouring_codes(steps: NDArray[Real], scheme: QScheme) -> tuple[NDArray[Real], NDArray[Real]]:
    """The two adjacent codes with each of ``steps`` between them, or the outermost two; shape and dtype of ``steps``.

    A scheme of a single code gives that code twice.
    """
    codes: NDArray[Real] = np.asarray(scheme.codebook or range(scheme.qmin, scheme.qmax + 1), steps.dtype)
    lower = np.clip(np.searchsorted(codes, steps, side="right") - 1, 0, max(len(codes) - 2, 0))
    return codes[lower], codes[np.minimum(lower + 1, len(codes) - 1)]
