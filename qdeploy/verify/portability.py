"""Where other CPUs can answer otherwise: proven on an artifact, for every input, without running it.

Every other integer kernel gives the same codes on x86, ARM64 and WebAssembly. Operators that stay in float32 are no
business of this proof: coverage lists them, and golden vectors of such a model have a tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qdeploy.core import saturation
from qdeploy.core.elementwise import KERNELS, disagreements
from qdeploy.core.saturation import Saturating
from qdeploy.verify.artifact import IntegerLayer, integer_layers, parse
from qdeploy.verify.reference import operands

UINT8_MAX, INT8_PAIR = 255, 256  # activations of int8 are shifted to uint8 first


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
    """Examine every integer layer of an ONNX model with QuantizeLinear and DequantizeLinear around its operators."""
    saturating, disagreeing = [], []
    for layer in integer_layers(parse(model)):
        found = _saturating(layer)
        if found is not None:
            saturating.append(SaturatingLayer(layer.name, found.channels, found.pairs, found.worst))
        pairs = _disagreements(layer)
        if pairs:
            disagreeing.append(Disagreement(layer.name, layer.op, pairs))
    return Portability(tuple(saturating), tuple(disagreeing))


def _saturating(layer: IntegerLayer) -> Saturating | None:
    if layer.op not in ("Conv", "Gemm", "MatMul"):
        return None
    x, weight = layer.inputs[:2]
    if weight.zero_point.dtype != np.int8:
        return None  # uint8 by uint8 is multiplied in 16 bits and added in 32
    if weight.constant is None:
        return Saturating(1, 1, INT8_PAIR)  # computed: nothing is known of it, so at least one pair can
    codes = _rows(layer, weight.constant)
    if saturation.is_depthwise(codes.shape, layer.attributes.get("group", 1)):
        return None
    return saturation.saturating(codes, x.limits[1] if x.zero_point.dtype == np.uint8 else UINT8_MAX)


def _rows(layer: IntegerLayer, weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """The weight with output channels first: [C_out, ...]."""
    if layer.op == "Conv" or (layer.op == "Gemm" and layer.attributes.get("transB", 0)):
        return weight
    return np.moveaxis(weight, -2, -1).reshape(-1, weight.shape[-2]) if weight.ndim > 1 else weight[None]


def _disagreements(layer: IntegerLayer) -> int:
    if layer.op not in KERNELS or layer.output is None or len(layer.inputs) != 2:
        return 0
    return disagreements(layer.op, *operands(layer))
