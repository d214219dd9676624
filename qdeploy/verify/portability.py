"""Where other CPUs can answer otherwise: proven on an artifact, for every input, without running it.

Layers are read from the model, which says of their activations which codes there are; what onnxruntime makes integer
kernels of besides, from the graph that it runs (running.py). Every other integer kernel gives the same codes on x86,
ARM64 and WebAssembly, but for those that find ranges at run time (runner.RANGE_OF_THE_CALL): of these, as of operators
that stay in float32, last bits may differ. Golden vectors of such a model have a tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core import saturation
from qdeploy.core.elementwise import EVERY_PAIR, KERNELS, Operand, disagreements
from qdeploy.core.saturation import Saturating
from qdeploy.core.scheme import QScheme
from qdeploy.verify.artifact import IntegerLayer, integer_layers, parse
from qdeploy.verify.reference import operands
from qdeploy.verify.running import Running, running

UINT8_MAX, INT8_PAIR = 255, 256  # activations of int8 are shifted to uint8 first

_PRODUCTS = ("Conv", "Gemm", "MatMul")
# Kernels that multiply codes: where among their inputs weights are, and the zero points of these.
_WEIGHTS = {
    "QLinearConv": ((3, 5),), "QGemm": ((3, 5),), "QLinearMatMul": ((3, 5),), "ConvInteger": ((1, 3),),
    "MatMulInteger": ((1, 3),), "MatMulIntegerToFloat": ((1, 5),), "DynamicQuantizeMatMul": ((1, 3),),
    "QAttention": ((1, 7),), "DynamicQuantizeLSTM": ((1, 9), (2, 11)),
}  # fmt: skip
_RUNNING = frozenset((*_WEIGHTS, *(f"QLinear{op}" for op in KERNELS)))


@dataclass(frozen=True, slots=True)
class SaturatingLayer:
    """A layer in which products of codes can saturate on x86 without VNNI (core/saturation.py)."""

    name: str
    channels: int
    pairs: int
    worst: int


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An Add or Mul of two tensors that kernels round differently, for ``pairs`` pairs of codes."""

    name: str
    op: str
    pairs: int


@dataclass(frozen=True, slots=True)
class Portability:
    """Two empty lists prove that all CPUs give the same codes."""

    saturation: tuple[SaturatingLayer, ...] = ()
    arithmetic: tuple[Disagreement, ...] = ()


def portability(model: bytes) -> Portability:
    """Examine every integer layer of an ONNX model, and whatever else onnxruntime runs in integers."""
    proto = parse(model)
    saturating: list[SaturatingLayer] = []
    disagreeing: list[Disagreement] = []
    examined = set()
    for layer in integer_layers(proto):
        if layer.op in _PRODUCTS:
            examined.add(layer.name)
            saturating += _named(layer.name, _saturating(layer))
        elif layer.op in KERNELS and layer.output is not None and _scalars(layer):
            examined.add(layer.name)
            pairs = disagreements(layer.op, *operands(layer))
            disagreeing += [Disagreement(layer.name, layer.op, pairs)] if pairs else []
    for kernel in running(proto, _RUNNING):
        if kernel.name in examined:
            continue
        if kernel.op in _WEIGHTS:
            saturating += _named(kernel.name, _saturating_kernel(kernel))
        elif pairs := _disagreeing_pairs(kernel):
            disagreeing.append(Disagreement(kernel.name, kernel.op.removeprefix("QLinear"), pairs))
    return Portability(tuple(saturating), tuple(disagreeing))


def _named(name: str, found: Saturating | None) -> list[SaturatingLayer]:
    return [] if found is None else [SaturatingLayer(name, found.channels, found.pairs, found.worst)]


def _saturating(layer: IntegerLayer) -> Saturating | None:
    x, weight = layer.inputs[:2]
    if weight.zero_point.dtype != np.int8:
        return None  # uint8 by uint8 is multiplied in 16 bits and added in 32
    # A convolution's padding is the zero point, which may lie beyond codes that are clipped.
    highest = max(x.limits[1], int(x.zero_point.max())) if x.zero_point.dtype == np.uint8 else UINT8_MAX
    output_first = layer.op == "Conv" or bool(layer.attributes.get("transB", 0))
    return _of_weight(weight.constant, output_first, layer.attributes.get("group", 1), highest)


def _saturating_kernel(kernel: Running) -> Saturating | None:
    """The worst of a kernel's weights, for activations of any code."""
    found = []
    for weight, zero_point in _WEIGHTS[kernel.op]:
        codes, zero = (kernel.stored[i] if i < len(kernel.stored) else None for i in (weight, zero_point))
        known = codes if codes is not None else zero
        if known is None or known.dtype == np.int8:
            output_first = kernel.op in ("QLinearConv", "ConvInteger") or bool(kernel.attributes.get("transB", 0))
            found.append(_of_weight(codes, output_first, kernel.attributes.get("group", 1), UINT8_MAX))
    return max((one for one in found if one is not None), key=lambda one: one.worst, default=None)


def _of_weight(codes: NDArray[Any] | None, output_first: bool, groups: int, highest: int) -> Saturating | None:
    if codes is None:
        return Saturating(1, 1, INT8_PAIR)  # computed: nothing is known of it, so at least one pair can
    rows = codes if output_first else _columns(codes)
    return None if saturation.is_depthwise(rows.shape, groups) else saturation.saturating(rows, highest)


def _columns(weight: NDArray[Any]) -> NDArray[Any]:
    """The weights [..., K, C_out] of a matrix product with output channels first: [..., K]."""
    return np.moveaxis(weight, -2, -1).reshape(-1, weight.shape[-2]) if weight.ndim > 1 else weight[None]


def _scalars(layer: IntegerLayer) -> bool:
    """Whether codes of 8 bits with one scale each meet: nothing else has an integer kernel."""
    values = (*layer.inputs, layer.output)
    return len(values) == 3 and all(v is not None and v.scale.size == 1 and v.zero_point.itemsize == 1 for v in values)


def _disagreeing_pairs(kernel: Running) -> int:
    """Of the codes of a QLinearAdd or QLinearMul; of all of them where a scale or zero point is computed."""
    found = [kernel.stored[i] if i < len(kernel.stored) else None for i in (1, 2, 4, 5, 6, 7)]
    scales_and_zeros = [value.reshape(()) for value in found if value is not None and value.size == 1]
    if len(scales_and_zeros) < len(found):
        return EVERY_PAIR
    pairs = zip(scales_and_zeros[::2], scales_and_zeros[1::2], strict=True)
    a, b, y = (Operand(float(s), int(z), QScheme(8, signed=z.dtype == np.int8)) for s, z in pairs)
    return disagreements(kernel.op.removeprefix("QLinear"), a, b, y)
