"""Round to nearest: each weight to its own nearest code, whatever the layer's inputs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.scheme import QScheme
from qdeploy.quant.codes import nearest_codes
from qdeploy.quant.finite import refusal


def round_weight(
    weight: NDArray[np.float32],
    scale: NDArray[np.float32],
    scheme: QScheme,
    *,
    second_moment: NDArray[np.floating] | None = None,
    seed: int = 0,
) -> NDArray[np.int8]:
    """Integer codes for a layer's weights, real = code * scale: the least squared error on the weights themselves.

    ``weight`` float32 [C_out, ...] finite, ``scale`` float32 [C_out] positive; the result has the shape of ``weight``
    and the scheme's dtype. Every rounding plugin takes the same arguments, and options of its own with defaults after
    them. ``second_moment`` H is E[x x^T] of what the weights of one output channel meet, [K, K] with
    K = prod(weight.shape[1:]), or [groups, K, K] for a grouped layer; a plugin minimises tr((W - Q) H (W - Q)^T) with Q
    the rounded weights, and takes H for the identity where there is none. ``seed`` is for solvers that draw random
    numbers. Nearest rounding needs neither. QDeployError: NaN or infinite weights.
    """
    if not np.isfinite(weight).all():
        raise refusal(int(np.isnan(weight).sum()), int(np.isinf(weight).sum()), "in the weight")
    steps = weight / scale.reshape(-1, *[1] * (weight.ndim - 1))
    return nearest_codes(steps, scheme).astype(scheme.dtype)
