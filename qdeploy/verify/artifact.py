"""Read a QDQ model as the integer layers it describes.

Works on any ONNX model that puts QuantizeLinear/DequantizeLinear around its operators, not only on qdeploy's own.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from qdeploy.core.errors import QDeployError
from qdeploy.verify.lookups import LOOKUP, lookup
from qdeploy.verify.quantized import Quantized, QuantizedValues

# Operators that multiply: the ones whose work is counted in multiply-accumulates.
MAC_OPERATORS = (
    *("Conv", "Gemm", "MatMul", "ConvTranspose", "LSTM", "GRU", "RNN"),
    *("DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger"),
)  # fmt: skip


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
    """Every operator between DequantizeLinear inputs, in graph order, with its output quantizer if it has one.

    And every look-up in a table of codes, as one Gather of the indices and the table (lookups.py).
    """
    values = QuantizedValues(model)
    producers = {name: node for node in model.graph.node for name in node.output}
    layers = []
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        found = lookup(node, producers, values.constants)
        if found is not None:
            layers.append(IntegerLayer(node.name, LOOKUP, {}, found, None, node.output[0]))
            continue
        inputs = [values.dequantized.get(name) for name in node.input]
        needed = (
            inputs[:1] if node.op_type in ("Reshape", "Slice", "Squeeze", "Unsqueeze", "Resize", "Clip") else inputs
        )
        if not needed or any(value is None for value in needed):
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        quantized = tuple(value for value in needed if value is not None)
        output = values.quantized.get(node.output[0])
        layers.append(IntegerLayer(node.name, node.op_type, attributes, quantized, output, node.output[0]))
    return layers


def expose(model: onnx.ModelProto, names: list[str]) -> bytes:
    """The model with the values ``names`` as further outputs; their types are left to onnxruntime."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {output.name for output in copy.graph.output}
    for name in names:
        if name not in present:
            copy.graph.output.append(onnx.ValueInfoProto(name=name))
    serialized: bytes = copy.SerializeToString()
    return serialized


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
