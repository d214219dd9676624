"""Which layers run in integer kernels, by multiply-accumulates, read from the graph that onnxruntime runs."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx

from qdeploy.core.errors import QDeployError
from qdeploy.quant.fusion_table import reason_for_float
from qdeploy.runtimes.onnxruntime import optimized_graph
from qdeploy.verify.artifact import MAC_OPERATORS, parse

# Kernels that multiply codes; QGemm and MatMulIntegerToFloat may leave float32 behind, their products are integers.
INTEGER_KERNELS = frozenset((
    "QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QAttention",
))  # fmt: skip
# onnxruntime appends these to a node's name when it rewrites the node.
_SUFFIX = re.compile(r"(_token_\d+|_nchwc|_quant|_\d+)*$")


@dataclass(frozen=True, slots=True)
class LayerCoverage:
    """One multiplying layer: its operator, the kernel that runs it, and why it is float32 if it is."""

    name: str
    op: str
    kernel: str
    integer: bool
    reason: str
    macs: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """The layers of a model that multiply, in graph order, and the kernels of the graph that runs."""

    layers: tuple[LayerCoverage, ...]
    kernels: dict[str, int]  # every operator of the optimized graph, counted

    @property
    def integer_mac_share(self) -> float:
        """The share of multiply-accumulates in integer kernels; 0 for a model that multiplies nothing."""
        total = sum(layer.macs for layer in self.layers)
        return sum(layer.macs for layer in self.layers if layer.integer) / total if total else 0.0


def coverage(model: bytes) -> Coverage:
    """Coverage of an ONNX model on this machine's onnxruntime (CPU)."""
    proto = parse(model)
    optimized = onnx.load_from_string(optimized_graph(proto.SerializeToString()))
    kernels = kernels_by_layer(optimized)
    quantized = any(node.op_type == "QuantizeLinear" for node in proto.graph.node)
    macs = layer_macs(proto)
    layers = []
    for node in proto.graph.node:
        if node.op_type not in MAC_OPERATORS:
            continue
        kernel = kernels.get(node.name, node.op_type)
        integer = kernel in INTEGER_KERNELS
        reason = "" if integer else (reason_for_float(node.op_type) if quantized else "a float32 model")
        layers.append(LayerCoverage(node.name, node.op_type, kernel, integer, reason, macs[node.name]))
    counted = Counter(node.op_type for node in optimized.graph.node)
    _cross_check(layers, counted)
    return Coverage(tuple(layers), dict(sorted(counted.items())))


def layer_macs(model: onnx.ModelProto) -> dict[str, int]:
    """Multiply-accumulates of one sample for every multiplying node, by node name, from inferred shapes."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    for value in single.graph.input:
        shape = value.type.tensor_type.shape
        if shape.dim and shape.dim[0].WhichOneof("value") != "dim_value":
            shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(single, data_prop=True)
    shapes = {i.name: tuple(i.dims) for i in inferred.graph.initializer}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    result = {}
    for node in inferred.graph.node:
        if node.op_type in MAC_OPERATORS:
            result[node.name] = _macs(node, shapes)
    return result


def _macs(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    output, first, second = (shapes.get(name, ()) for name in (node.output[0], node.input[0], node.input[1]))
    if node.op_type == "ConvTranspose":
        return int(np.prod(first, dtype=np.int64) * np.prod(second[1:], dtype=np.int64))
    if node.op_type == "Conv":
        return int(np.prod(output, dtype=np.int64) * np.prod(second[1:], dtype=np.int64))
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    depth = first[0 if transposed else -1] if first else 0
    return int(np.prod(output, dtype=np.int64) * depth)


def kernels_by_layer(optimized: onnx.ModelProto) -> dict[str, str]:
    """Node name of the original model -> operator of the node that it became."""
    found: dict[str, str] = {}
    for node in optimized.graph.node:
        for name in (node.name, _SUFFIX.sub("", node.name), *node.output):
            found.setdefault(name, node.op_type)
    return found


def _cross_check(layers: list[LayerCoverage], counted: Counter[str]) -> None:
    """Every integer kernel of the running graph belongs to exactly one layer, or the share would be wrong."""
    claimed = sum(layer.integer for layer in layers)
    running = sum(count for kernel, count in counted.items() if kernel in INTEGER_KERNELS)
    if claimed > running:
        raise QDeployError(
            f"{claimed} layers seem to run in integer kernels, but onnxruntime's graph has {running}.",
            "The layers' names are not unique; please report the model.",
        )
