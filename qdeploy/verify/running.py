"""The operators of the graph that onnxruntime runs, with what of their inputs is stored.

A model may spell integer kernels out, or describe them in ways that only onnxruntime's own rewriting turns into
QuantizeLinear and DequantizeLinear around an operator: a transposed weight, a ReLU behind an addition, functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from qdeploy.runtimes.onnxruntime import optimized_graph
from qdeploy.verify.coverage import original_name


@dataclass(frozen=True, slots=True)
class Running:
    """A node of the running graph, ``name`` that of the model's node it was made from, or else its own.

    ``stored`` has an array for each input that is a constant, None for the others.
    """

    name: str
    op: str
    attributes: dict[str, Any]
    stored: tuple[NDArray[Any] | None, ...]


def running(model: onnx.ModelProto, operators: frozenset[str]) -> Iterator[Running]:
    """The nodes of these ``operators`` in the graph that runs for a model, those of branches and loops too."""
    names = {node.name for node in model.graph.node}
    graphs = list(_graphs(onnx.load_from_string(optimized_graph(model.SerializeToString())).graph))
    tensors = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
    for graph in graphs:
        for node in graph.node:
            if node.op_type in operators:
                found = (tensors.get(name) for name in node.input)
                yield Running(
                    original_name(node.name, names) or node.name, node.op_type,
                    {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
                    tuple(None if tensor is None else numpy_helper.to_array(tensor) for tensor in found),
                )  # fmt: skip


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)
