"""The quantized values of a QDQ model: where their codes are, what they mean, and which of them there can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qdeploy.core.scheme import QScheme
from qdeploy.quant.fusion_table import TABLE, Role
from qdeploy.verify.constants import Constants

# Operators whose outputs are among their inputs, or zero.
_MOVES = frozenset(row.onnx for row in TABLE if row.role is Role.MOVE) | {"Flatten", "Identity"}
_CONTAINERS = (np.uint8, np.int8, np.int32)  # int32: biases


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized value: the tensor that holds its codes, and what they mean.

    ``scale`` is what quantizing divides by and ``dequantize_scale`` what dequantizing multiplies with; they differ
    where the model was trained so. Scales and ``zero_point`` are scalars, or vectors along ``axis``. ``limits`` are the
    lowest and the highest code of an activation. ``constant`` holds the codes of a stored value (a weight) and is None
    for an activation; ``stored`` is how many bytes of the file they take.
    """

    codes: str
    scale: NDArray[np.float32]
    dequantize_scale: NDArray[np.float32]
    zero_point: NDArray[Any]
    limits: tuple[int, int]
    axis: int | None = None
    constant: NDArray[Any] | None = None
    stored: int = 0

    @property
    def scheme(self) -> QScheme:
        """The codes that quantizing an activation gives: all between its limits."""
        signed = self.zero_point.dtype != np.uint8
        for bits in range(1, 9):
            scheme = QScheme(bits, signed=signed)
            if (scheme.qmin, scheme.qmax) == self.limits:
                return scheme
        low, high = self.limits
        return QScheme(8, signed=signed, codebook=tuple(range(low, high + 1)))

    @property
    def name(self) -> str:
        """The name of the value that was quantized."""
        return self.codes.removesuffix(":codes")


class QuantizedValues:
    """The quantized values of one model, by the float32 values that operators read and write.

    Codes may be clipped behind their QuantizeLinear, and moved; each value knows which codes it can have.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants = Constants(model)
        self.dequantized: dict[str, Quantized] = {}  # by the DequantizeLinear's output
        self.quantized: dict[str, Quantized] = {}  # by the QuantizeLinear's input
        self._codes: dict[str, Quantized] = {}  # by the tensor of codes
        self._producers = {name: node for node in model.graph.node for name in node.output}
        self._readers = Counter(name for node in model.graph.node for name in node.input)
        self._readers.update(output.name for output in model.graph.output)
        self._real_scales = {  # by the tensor of codes
            node.input[0]: self.constants.get(node.input[1])
            for node in model.graph.node
            if node.op_type == "DequantizeLinear"
        }
        read = {"QuantizeLinear": self._quantize, "Clip": self._clip, "DequantizeLinear": self._dequantize}
        for node in model.graph.node:
            if node.op_type in read:
                read[node.op_type](node)

    def _quantize(self, node: onnx.NodeProto) -> None:
        value = self._value(node, node.output[0])
        if value is None:
            return
        moved = self.dequantized.get(self._source(node.input[0], self.dequantized))
        if moved is not None and _same(moved, value):
            value = replace(value, limits=moved.limits)
        self._codes[value.codes] = value
        if self._readers[node.input[0]] == 1:
            self.quantized[node.input[0]] = value

    def _clip(self, node: onnx.NodeProto) -> None:
        """A Clip of codes belongs to the quantizer: it says which codes there are."""
        value = self._codes.get(node.input[0])
        if value is None or not all(name in self.constants for name in node.input[1:] if name):
            return
        given = [self.constants.get(name) for name in (*node.input[1:], "", "")[:2]]
        bounds = [own if limit is None else int(limit) for limit, own in zip(given, value.limits, strict=True)]
        low, high = (int(np.clip(limit, bounds[0], bounds[1])) for limit in value.limits)
        clipped = replace(
            value, codes=node.output[0], limits=(low, high),
            dequantize_scale=self._real_scale(node.output[0], value.dequantize_scale),
        )  # fmt: skip
        self._codes[clipped.codes] = clipped
        if self._readers[value.codes] == 1:
            self.quantized.update({name: clipped for name, other in self.quantized.items() if other is value})

    def _dequantize(self, node: onnx.NodeProto) -> None:
        value = self._value(node, node.input[0])
        if value is None:
            return
        source = self._codes.get(self._source(value.codes, self._codes))
        if source is not None and value.constant is None:
            value = replace(value, scale=source.scale, limits=source.limits)
        self.dequantized[node.output[0]] = value

    def _value(self, node: onnx.NodeProto, codes: str) -> Quantized | None:
        """What the parameters of a QuantizeLinear or DequantizeLinear say of its codes."""
        scale = self.constants.get(node.input[1])
        if scale is None:
            return None
        constant = self.constants.get(codes)
        if len(node.input) > 2 and node.input[2]:
            zero_point = self.constants.get(node.input[2])
        else:
            zero_point = np.zeros(scale.shape, constant.dtype if constant is not None else np.uint8)
        if zero_point is None or zero_point.dtype not in _CONTAINERS:
            return None
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1) if scale.size > 1 else None
        if axis is None:
            scale, zero_point = scale.reshape(()), zero_point.reshape(())
        scale, container = scale.astype(np.float32), np.iinfo(zero_point.dtype)
        real_scale = scale if node.op_type == "DequantizeLinear" else self._real_scale(codes, scale)
        return Quantized(
            codes, scale, real_scale, zero_point, (int(container.min), int(container.max)), axis, constant,
            self.constants.stored_bytes(codes),
        )  # fmt: skip

    def _real_scale(self, codes: str, scale: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scale of the DequantizeLinear that reads ``codes``; ``scale`` where there is none of its shape."""
        found = self._real_scales.get(codes)
        return scale if found is None or found.size != scale.size else found.astype(np.float32).reshape(scale.shape)

    def _source(self, name: str, known: Mapping[str, Quantized]) -> str:
        """What a value was moved from: the first among ``known`` on the way back."""
        while name not in known:
            node = self._producers.get(name)
            nearest = node is not None and all(a.s == b"nearest" for a in node.attribute if a.name == "mode")
            if node is None or node.op_type not in _MOVES or (node.op_type == "Resize" and not nearest):
                break
            name = node.input[0]
        return name


def _same(a: Quantized, b: Quantized) -> bool:
    """Whether quantizing with the parameters of ``b`` gives back the codes that those of ``a`` dequantized."""
    return np.array_equal(a.dequantize_scale, b.scale) and np.array_equal(a.zero_point, b.zero_point)
