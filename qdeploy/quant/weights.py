"""From one layer's float32 weight to its codes: what to come close to, in which steps, and the rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core import affine
from qdeploy.core.errors import QDeployError
from qdeploy.core.qtensor import QTensor
from qdeploy.quant import weight_range
from qdeploy.quant.convert import smallest_scale
from qdeploy.quant.moments import Moments
from qdeploy.quant.output_scale import fitted_scale, output_scale
from qdeploy.quant.placement import QuantizedLayer
from qdeploy.quant.portable import breaks, constrain

Solver = Callable[..., NDArray[Any]]  # a rounding plugin, its options bound
Float32 = NDArray[np.float32]

OUTPUT = "output"  # the observer of weights that needs the layer's inputs
OBSERVERS = (*weight_range.OBSERVERS, OUTPUT)

# Of the mean second moment: how strongly the target holds on to the weight where the data say little. From 0.001 to 0.3
# it matters little on ResNet-20; with no target but the weight itself, 2 bits lose a quarter of the accuracy.
DAMPING = 0.1


def quantize_weight(
    weight: Float32, bias: Float32 | None, layer: QuantizedLayer, solve: Solver, *, observer: str,
    moments: Moments | None = None, portable: bool = False, seed: int = 0,
) -> QTensor:  # fmt: skip
    """A layer's weight [C_out, ...] as codes with a scale for each output channel.

    Without ``moments`` of the layer's inputs, ``observer`` and ``solve`` see the weight alone. With them they see the
    weights that on quantized inputs come closest to the float32 layer, and the scales are fitted to the codes at last.
    ``portable``: no pair of the codes can saturate (portable.py).
    ``bias`` [C_out] or None is what int32 has to hold beside the products: a scale too small for it is raised.
    The rows of a table are rounded for themselves, at the scales of least squared error, whatever is asked for.
    QDeployError names the layer.
    """
    scheme = layer.weight.scheme
    if layer.table:
        observer, moments = "mse", None
    try:
        second = None if moments is None else moments.second
        if moments is None:
            target = weight
            scale = _guarded(weight_range.symmetric_scale(weight, scheme, observer=observer), weight, bias, layer)
            codes = solve(weight, scale, scheme, seed=seed)
        else:
            target = moments.target(weight, DAMPING)
            scale = _guarded(_informed_scale(target, layer, observer, moments), target, bias, layer)
            codes = solve(target, scale, scheme, second_moment=second, seed=seed)
        made = QTensor(codes, scale, np.zeros(scale.shape, scheme.dtype), scheme, axis=0)
        if portable:
            made = within_limit(target, made, layer, second)
        return made if second is None else _fitted(target, made, bias, layer, second)
    except QDeployError as error:
        raise QDeployError(f"Quantizing the weight of {layer.name!r}: {error.message}", error.hint) from None


def make_portable(weight: Float32, bias: Float32 | None, layer: QuantizedLayer, moments: Moments | None) -> None:
    """Change the codes that a layer has, which stand for ``weight``, so that no pair of them can saturate, in place."""
    second = None if moments is None else moments.second
    made = within_limit(weight, layer.weight.tensor, layer, second)
    layer.weight.set(made if second is None else _fitted(weight, made, bias, layer, second))


def within_limit(target: Float32, made: QTensor, layer: QuantizedLayer, second: NDArray[Any] | None) -> QTensor:
    """``made``, or where a pair of its codes breaks the layer's limit, what comes closest and does not."""
    limit = layer.pair_limit
    if limit is None or not breaks(made.codes, limit):
        return made
    codes, scale = constrain(target, made.codes, made.scale, made.scheme, limit, second)
    return QTensor(codes, scale, made.zero_point, made.scheme, axis=0)


def _fitted(
    target: Float32, made: QTensor, bias: Float32 | None, layer: QuantizedLayer, second: NDArray[Any]
) -> QTensor:
    """The same codes with the scales that suit them best, as far as the int32 bias allows."""
    scale = fitted_scale(target, made.codes, made.scale, second)
    scale = np.maximum(scale, smallest_scale(made.codes, bias, layer))
    return QTensor(made.codes, scale, made.zero_point, made.scheme, axis=0)


def _informed_scale(target: Float32, layer: QuantizedLayer, observer: str, moments: Moments) -> Float32:
    if observer == OUTPUT:
        return output_scale(target, layer.weight.scheme, moments.second)
    return weight_range.symmetric_scale(target, layer.weight.scheme, observer=observer)


def _guarded(scale: Float32, weight: Float32, bias: Float32 | None, layer: QuantizedLayer) -> Float32:
    """Scales [C_out], raised where the int32 bias would overflow beside the products of nearest codes."""
    scheme = layer.weight.scheme
    codes = affine.quantize(weight, scale, np.zeros(len(scale), scheme.dtype), scheme, axis=0)
    guarded: Float32 = np.maximum(scale, smallest_scale(codes, bias, layer))
    return guarded
