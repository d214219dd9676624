"""Read a QDQ model as the integer layers it describes.

Works on any ONNX model that puts QuantizeLinear/DequantizeLinear around its operators, not only on qdeploy's own.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import numpy_helper

from qdeploy.core.errors import QDeployError
from qdeploy.core.scheme import QScheme

# Operators that multiply: the ones whose work is counted in multiply-accumulates.
MAC_OPERATORS = ("Conv", "Gemm", "MatMul", "ConvTranspose", "LSTM", "GRU", "RNN")
_SCHEMES = {
    np.dtype(np.uint8): QScheme(8, signed=False),
    np.dtype(np.int8): QScheme(8, signed=True),
    np.dtype(np.int32): QScheme(8, signed=True),  # a bias: its codes are never clipped
}


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized value: the tensor that holds its codes, and what they mean.

    ``constant`` holds the codes of a stored value (a weight); it is None for an activation. ``scale`` and
    ``zero_point`` are scalars, or vectors along ``axis``.
    """

    codes: str
    scale: NDArray[np.float32]
    zero_point: NDArray[Any]
    axis: int | None = None
    constant: NDArray[Any] | None = None

    @property
    def scheme(self) -> QScheme:
        """The container's full range, which is what a QuantizeLinear saturates to."""
        return _SCHEMES[self.zero_point.dtype]

    @property
    def name(self) -> str:
        """The name of the value that was quantized."""
        return self.codes.removesuffix(":codes")


@dataclass(frozen=True, slots=True)
class IntegerLayer:
    """An operator whose inputs are all quantized. ``output`` is None where it leaves float32 (``value`` names it)."""

    name: str
    op: str
    attributes: dict[str, Any]
    inputs: tuple[Quantized, ...]
    output: Quantized | None
    value: str


def parse(model: bytes) -> onnx.ModelProto:
    """The model that ``model`` encodes, checked; a QDeployError if it is none."""
    try:
        proto = onnx.load_from_string(model)
        onnx.checker.check_model(proto)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise QDeployError(f"This is not a valid ONNX model: {str(error).splitlines()[0]}") from error
    name_nodes(proto)
    return proto


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a unique name, in place: reports and onnxruntime's own graph refer to nodes by name."""
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        name = node.name or (node.output[0] if node.output else node.op_type)
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"


def integer_layers(model: onnx.ModelProto) -> list[IntegerLayer]:
    """Every operator between DequantizeLinear inputs, in graph order, with its output quantizer if it has one."""
    graph = _Graph(model)
    layers = []
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        inputs = [graph.dequantized.get(name) for name in node.input]
        needed = (
            inputs[:1] if node.op_type in ("Reshape", "Slice", "Squeeze", "Unsqueeze", "Resize", "Clip") else inputs
        )
        if not needed or any(value is None for value in needed):
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        quantized = tuple(value for value in needed if value is not None)
        output = graph.quantized.get(node.output[0])
        layers.append(IntegerLayer(node.name, node.op_type, attributes, quantized, output, node.output[0]))
    return layers


class _Graph:
    """Look-ups over one model: constants, and the quantized values on both sides of an operator."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
        self.dequantized: dict[str, Quantized] = {}  # by the DequantizeLinear's output
        self.quantized: dict[str, Quantized] = {}  # by the QuantizeLinear's input
        readers = Counter(name for node in model.graph.node for name in node.input)
        readers.update(output.name for output in model.graph.output)
        for node in model.graph.node:
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                continue
            value = self._value(node)
            if value is None:
                continue
            if node.op_type == "DequantizeLinear":
                self.dequantized[node.output[0]] = value
            elif readers[node.input[0]] == 1:
                self.quantized[node.input[0]] = value

    def _value(self, node: onnx.NodeProto) -> Quantized | None:
        scale = self.constants.get(node.input[1])
        if scale is None:
            return None
        codes = node.input[0] if node.op_type == "DequantizeLinear" else node.output[0]
        constant = self.constants.get(codes)
        if len(node.input) > 2 and node.input[2]:
            zero_point = self.constants.get(node.input[2])
        else:
            zero_point = np.zeros(scale.shape, constant.dtype if constant is not None else np.uint8)
        if zero_point is None or zero_point.dtype not in _SCHEMES:
            return None
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1) if scale.size > 1 else None
        if axis is None:
            scale, zero_point = scale.reshape(()), zero_point.reshape(())
        return Quantized(codes, scale.astype(np.float32), zero_point, axis, constant)


def expose(model: onnx.ModelProto, names: list[str]) -> bytes:
    """The model with the values ``names`` as further outputs; their types are left to onnxruntime."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {output.name for output in copy.graph.output}
    for name in names:
        if name not in present:
            copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return copy.SerializeToString()


def signature(model: bytes) -> dict[str, list[dict[str, Any]]]:
    """The inputs and outputs of a model: names, dtypes, and shapes with a name for every free dimension."""
    graph = onnx.load_from_string(model).graph
    constants = {initializer.name for initializer in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    return {"inputs": [_tensor(value) for value in inputs], "outputs": [_tensor(value) for value in graph.output]}


def _tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "any" for d in tensor.shape.dim]
    return {"name": value.name, "dtype": onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, "shape": shape}
