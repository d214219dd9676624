"""Per-channel weight scales judged by the layer's output, where the second moment of its inputs is known."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.affine import SMALLEST_SCALE
from qdeploy.core.scheme import QScheme
from qdeploy.quant.rounding import gptq
from qdeploy.quant.rounding._layer import Layer
from qdeploy.quant.weight_range import symmetric_scale

Float32 = NDArray[np.float32]

# Of the scale with the least squared error on the weights.
FRACTIONS = (1.0, *np.geomspace(0.6, 1.5, 13))


def output_scale(weight: NDArray[Any], scheme: QScheme, second_moment: NDArray[Any]) -> Float32:
    """The scale of each output channel with the least error of the layer's output when GPTQ rounds: float32 [C_out].

    Never worse there than the observer "mse", from whose scales it starts. ``weight`` [C_out, ...] and
    ``second_moment`` as rounding plugins take them. QDeployError: what ``symmetric_scale`` and they refuse.
    """
    start = best = symmetric_scale(weight, scheme, observer="mse")
    least = np.full(len(start), np.inf)
    spread = gptq.Spread.of(Layer.of(weight, start, scheme, second_moment))
    for fraction in FRACTIONS:
        scale = np.maximum(start * np.float32(fraction), np.float32(SMALLEST_SCALE))
        layer = Layer.of(weight, scale, scheme, second_moment)
        error = layer.error(gptq.solve(layer, spread)).reshape(-1) * scale.astype(np.float64) ** 2
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best


def fitted_scale(weight: NDArray[Any], codes: NDArray[Any], scale: Float32, second_moment: NDArray[Any]) -> Float32:
    """The best scales for codes that are chosen: argmin over s of E[((w - s q) x)^2] = (w H q) / (q H q), [C_out].

    ``weight`` and ``codes`` [C_out, ...]. A channel whose codes say nothing of its weights (all zero, or of the
    opposite sign) keeps its ``scale``.
    """
    layer = Layer.of(weight, scale, QScheme(bits=8, signed=True), second_moment)
    q = codes.reshape(layer.steps.shape).astype(np.float64)
    met = q @ layer.moment
    across, along = (np.einsum("grk,grk->gr", met, other).reshape(-1) for other in (layer.steps, q))
    ratio = np.divide(across, along, out=np.ones_like(across), where=(across > 0) & (along > 0))
    refitted: Float32 = np.maximum(scale * ratio, SMALLEST_SCALE).astype(np.float32)
    return refitted
