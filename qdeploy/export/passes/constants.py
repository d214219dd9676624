"""Compute what does not depend on the input, make every constant an initializer, drop what nobody reads.

Contract: in, a valid model; out, the same function. Quantizers are left alone: the codes of a weight are what ships.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer

from qdeploy.export.passes.values import array, initializer

_LARGEST = 1024  # elements; larger results would only blow the file up


def fold(model: ir.Model) -> None:
    """Fold small constant expressions into initializers, in place."""
    optimizer.fold_constants(
        model,
        onnx_shape_inference=False,
        output_size_limit=_LARGEST,
        should_fold=lambda node: None if node.op_type not in ("QuantizeLinear", "DequantizeLinear") else False,
    )
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for node in list(model.graph):
        if node.op_type == "Reshape":
            _store_reshaped(model.graph, node)


def clean(model: ir.Model) -> None:
    """Remove identities, repeated computations and unused nodes and initializers, in place."""
    ir.passes.Sequential(
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.TopologicalSortPass(),
    )(model)


def _store_reshaped(graph: ir.Graph, node: ir.Node) -> None:
    """Store a tensor in the one shape in which it is read, under its own name."""
    value, tensor, shape = node.inputs[0], array(node.inputs[0]), array(node.inputs[1])
    if value is None or tensor is None or shape is None or len(value.uses()) > 1 or value.is_graph_output():
        return
    graph.initializers.pop(str(value.name))
    node.outputs[0].replace_all_uses_with(initializer(graph, str(value.name), tensor.reshape(shape)))
    graph.remove(node)
