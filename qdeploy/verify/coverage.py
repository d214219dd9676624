"""Which layers run in integer kernels, by multiply-accumulates, read from the graph that onnxruntime runs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx

from qdeploy.core.errors import QDeployError
from qdeploy.quant.fusion_table import FLOAT_ISLANDS, reason_for_float
from qdeploy.runner import RANGE_OF_THE_CALL, answers_alone
from qdeploy.runtimes.onnxruntime import Runtime, optimized_graph
from qdeploy.verify.artifact import MAC_OPERATORS, expose, parse

# Kernels that multiply codes; QGemm and MatMulIntegerToFloat may leave float32 behind, their products are integers.
INTEGER_KERNELS = frozenset((
    "QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QAttention",
))  # fmt: skip
# Operators of a running graph that compute nothing in float32: with them and integer kernels alone, every output is
# a function of integers, so every CPU must give the same bits.
_INTEGER_GRAPH = (INTEGER_KERNELS - set(RANGE_OF_THE_CALL)) | {
    *("QuantizeLinear", "DequantizeLinear", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearAveragePool"),
    *("QLinearGlobalAveragePool", "QLinearSigmoid", "QLinearLeakyRelu", "MaxPool", "NhwcMaxPool", "Transpose"),
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Resize", "Concat", "Pad", "Identity"),
    *("DepthToSpace", "Clip"),
}
# What onnxruntime puts around a node's name when it rewrites the node.
_PREFIX, _SUFFIX = "fused ", re.compile(r"(_token_\d+|_nchwc|_quant|_\d+)$")


@dataclass(frozen=True, slots=True)
class LayerCoverage:
    """A layer that multiplies, or a float32 island: its operator, its kernel, and why it is float32 if it is."""

    name: str
    op: str
    kernel: str
    integer: bool
    reason: str
    macs: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """The layers of a model that multiply and its float32 islands, in graph order; the kernels that run."""

    layers: tuple[LayerCoverage, ...]
    kernels: dict[str, int]  # every operator of the optimized graph, counted

    @property
    def computes_in_integers(self) -> bool:
        """Whether nothing of the running graph computes in float32."""
        return runs_in_integers(self.kernels)

    @property
    def answers_alone(self) -> bool:
        """Whether an answer depends on what else is in the batch, so that answers are those of one sample a call."""
        return answers_alone(layer.kernel for layer in self.layers)

    @property
    def integer_mac_share(self) -> float:
        """The share of multiply-accumulates in integer kernels; 0 for a model that multiplies nothing."""
        total = sum(layer.macs for layer in self.layers)
        return sum(layer.macs for layer in self.layers if layer.integer) / total if total else 0.0


def coverage(model: bytes) -> Coverage:
    """Coverage of an ONNX model on this machine's onnxruntime (CPU)."""
    proto = parse(model)
    optimized = onnx.load_from_string(optimized_graph(proto.SerializeToString()))
    kernels = kernels_by_layer(optimized, proto)
    quantized = any(node.op_type in ("QuantizeLinear", *INTEGER_KERNELS) for node in proto.graph.node)
    macs = layer_macs(proto)
    layers = []
    for node in proto.graph.node:
        kernel = kernels.get(node.name, node.op_type)
        if node.op_type not in MAC_OPERATORS and not (quantized and kernel in FLOAT_ISLANDS):
            continue
        integer = kernel in INTEGER_KERNELS
        reason = "" if integer else (reason_for_float(node.op_type) if quantized else "a float32 model")
        layers.append(LayerCoverage(node.name, node.op_type, kernel, integer, reason, macs.get(node.name, 0)))
    counted = Counter(node.op_type for node in optimized.graph.node)
    _cross_check(layers, counted)
    return Coverage(tuple(layers), dict(sorted(counted.items())))


def runs_in_integers(kernels: Iterable[str]) -> bool:
    """Whether a graph of these operators computes nothing in float32."""
    return set(kernels) <= _INTEGER_GRAPH


def layer_macs(model: onnx.ModelProto) -> dict[str, int]:
    """Multiply-accumulates of one sample for every multiplying node, by node name.

    Shapes are inferred; where that is not possible they are those of a run on zeros, and a size that nobody knows
    (a free height) counts as 1.
    """
    single = onnx.ModelProto()
    single.CopyFrom(model)
    for value in single.graph.input:
        shape = value.type.tensor_type.shape
        if shape.dim and shape.dim[0].WhichOneof("value") != "dim_value":
            shape.dim[0].dim_value = 1
    nodes = [node for node in single.graph.node if node.op_type in MAC_OPERATORS]
    shapes = _inferred_shapes(single)
    unknown = {name for node in nodes for name in (*node.input[:3], node.output[0]) if 0 in shapes.get(name, (0,))}
    unknown.discard("")
    if unknown:
        shapes.update(_measured_shapes(single, sorted(unknown)))
    return {node.name: _macs(node, shapes) for node in nodes}


def _inferred_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shape of every value, 0 for a size that is unknown."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.HasField("shape"):  # else its rank is unknown, which is not that of a scalar
            shapes[value.name] = _dims(value)
    return shapes


def _measured_shapes(model: onnx.ModelProto, names: list[str]) -> dict[str, tuple[int, ...]]:
    """The shapes that a run on zeros gives the values ``names``; none where the model does not run on zeros."""
    constants = {initializer.name for initializer in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    feeds = {
        value.name: np.zeros(
            tuple(size or 1 for size in _dims(value)),
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
        )
        for value in inputs
    }
    try:
        computed = Runtime(expose(model, [name for name in names if name not in feeds])).run(feeds)
    except QDeployError:
        return {}
    return {name: value.shape for name, value in {**feeds, **computed}.items()}


def _dims(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(d.dim_value for d in value.type.tensor_type.shape.dim)


def _macs(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    output, first, second = (
        tuple(size or 1 for size in shapes.get(name, ())) for name in (node.output[0], node.input[0], node.input[1])
    )
    if node.op_type in ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"):
        recurrent = shapes.get(node.input[2], ())
        return first[0] * (math.prod(second) + math.prod(recurrent)) if first else 0
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    if node.op_type == "Conv":
        return math.prod(output) * math.prod(second[1:])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(output) * (first[0 if transposed else -1] if first else 0)


def kernels_by_layer(optimized: onnx.ModelProto, original: onnx.ModelProto) -> dict[str, str]:
    """Node name of the original model -> operator of the node that it became; values are found by name as well."""
    names = {node.name for node in original.graph.node}
    found: dict[str, str] = {}
    for node in optimized.graph.node:
        for name in (original_name(node.name, names), *node.output):
            if name is not None:
                found.setdefault(name, node.op_type)
    return found


def original_name(name: str, names: set[str]) -> str | None:
    """The name among ``names`` that onnxruntime made ``name`` from: the longest, as layers may end in numbers too."""
    name = name.removeprefix(_PREFIX)
    while name not in names:
        shorter = _SUFFIX.sub("", name)
        if shorter == name:
            return None
        name = shorter
    return name


def _cross_check(layers: list[LayerCoverage], counted: Counter[str]) -> None:
    """Every integer kernel of the running graph belongs to exactly one layer, or the share would be wrong."""
    claimed = sum(layer.integer for layer in layers)
    running = sum(count for kernel, count in counted.items() if kernel in INTEGER_KERNELS)
    if claimed > running:
        raise QDeployError(
            f"{claimed} layers seem to run in integer kernels, but onnxruntime's graph has {running}.",
            "The layers' names are not unique; please report the model.",
        )
