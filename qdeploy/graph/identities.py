"""Remove what does nothing in eval mode, and compute once what depends on stored tensors alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from qdeploy.graph.layers import LAYER
from qdeploy.graph.operators import argument, is_operator, set_parameter, stored, tensor_at

_IDENTITIES = ("aten.dropout", "aten.feature_dropout", "aten.alpha_dropout", "aten.alias", "aten.contiguous",
               "aten.clone", "aten.detach", "aten.lift_fresh_copy", "aten.identity")  # fmt: skip
_CASTS = ("aten.to", "aten._to_copy", "aten.type_as")
# x + 0, as in Python's sum([a, b]), and the like.
_NEUTRAL = {"aten.add": 0, "aten.sub": 0, "aten.mul": 1, "aten.div": 1}


def drop_identities(graph_module: fx.GraphModule) -> None:
    """Remove the operators whose output is their input, in place."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if is_operator(node, "aten._assert_tensor_metadata"):
            graph.erase_node(node)
        elif _is_identity(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph_module.recompile()


def fold_constants(graph_module: fx.GraphModule) -> None:
    """Replace what is computed from stored tensors alone by its result, in place: weight norm, pruning masks, w.T.

    A result larger than what it is computed from stays computed: the artifact would grow.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        value = _constant(graph_module, node)
        if value is None:
            continue
        path = f"{node.meta[LAYER]}.value"
        set_parameter(graph_module, path, value)
        with graph.inserting_before(node):
            constant = graph.get_attr(path)
        constant.meta["val"] = value
        node.replace_all_uses_with(constant)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    graph_module.recompile()


def _is_identity(node: fx.Node) -> bool:
    source = node.args[0] if node.args else None
    if node.op != "call_function" or not isinstance(source, fx.Node):
        return False
    if is_operator(node, *_IDENTITIES):
        return True
    before, after = source.meta.get("val"), node.meta.get("val")
    if not (isinstance(before, Tensor) and isinstance(after, Tensor)):
        return False
    if before.dtype != after.dtype or before.shape != after.shape:
        return False
    if is_operator(node, *_NEUTRAL) and len(node.args) > 1:
        other = node.args[1]
        return isinstance(other, int | float) and any(other == n for k, n in _NEUTRAL.items() if is_operator(node, k))
    if is_operator(node, "aten.slice"):
        whole = argument(node, 3, "end") in (None, torch.iinfo(torch.int64).max)
        return not argument(node, 2, "start", 0) and whole and argument(node, 4, "step", 1) == 1
    return is_operator(node, *_CASTS)


def constant_value(graph_module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """What a node computes from stored tensors and numbers alone; None where it depends on the model's inputs."""
    if stored(node):
        return tensor_at(graph_module, str(node.target)).detach()
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    if torch.Tag.nondeterministic_seeded in node.target.tags:
        return None
    known = {read: constant_value(graph_module, read) for read in node.all_input_nodes}
    if any(value is None for value in known.values()):
        return None
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), known.__getitem__)
    result = node.target(*args, **kwargs)
    return result if isinstance(result, Tensor) else None


def _constant(graph_module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    value = node.meta.get("val")
    reads = node.all_input_nodes
    if is_operator(node, "aten.arange") and not reads:
        return constant_value(graph_module, node)  # stored, it goes with the graph to the device that trains it
    if node.op != "call_function" or not reads or not all(stored(read) for read in reads):
        return None
    # Rows of a table stay a look-up: the table ships as codes.
    if not isinstance(value, Tensor) or not value.dtype.is_floating_point or is_operator(node, "aten.embedding"):
        return None
    if not all(isinstance(size, int) for size in value.shape):
        return None
    size = sum(_bytes(tensor_at(graph_module, str(read.target))) for read in reads)
    result = constant_value(graph_module, node) if _bytes(value) <= size else None
    return None if result is None else result.clone()


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()
