"""Replace in-place operators by functional ones: relu_(x) -> relu(x), with later readers of x reading the result.

A quantizer can be put on a value only if the value does not change under it. Views become reshapes for the same
reason: a graph of values has no strides, and a view may fail on a rewritten graph where a reshape may not.
"""

from __future__ import annotations

import torch
from torch import fx

from qdeploy.core.errors import QDeployError
from qdeploy.graph.operators import is_operator, operator_name

# Operators whose result may share memory with their argument: writing into it writes into the argument as well.
_VIEWS = frozenset((
    *(f"aten.{name}" for name in ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "expand")),
    *(f"aten.{name}" for name in ("slice", "select", "split", "split_with_sizes", "chunk", "unbind", "narrow")),
    *(f"aten.{name}" for name in ("transpose", "permute", "t", "movedim", "diagonal", "contiguous", "detach", "alias")),
    *("aten.to", "aten.dropout", "getitem"),
))  # fmt: skip


def make_functional(graph_module: fx.GraphModule) -> None:
    """Rewrite every in-place ATen call of the graph, in place of the graph."""
    graph = graph_module.graph
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if is_operator(node, "aten.view", "aten._unsafe_view"):
            node.target = torch.ops.aten.reshape.default
        functional = _functional_overload(node)
        if functional is None:
            continue
        written = node.args[0]
        assert isinstance(written, fx.Node)
        _refuse_aliases(node, written, order)
        node.target = functional
        for user in list(written.users):
            if user is not node and order[user] > order[node]:
                user.replace_input_with(written, node)
    graph.lint()
    graph_module.recompile()


def _functional_overload(node: fx.Node) -> torch._ops.OpOverload | None:
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return None
    name = target._schema.name.split("::")[-1]
    if not name.endswith("_") or name.endswith("__") or not target._schema.is_mutable:
        return None
    packet = getattr(getattr(torch.ops, target.namespace), name[:-1], None)
    if packet is None or target._overloadname not in packet.overloads():
        raise QDeployError(
            f"The in-place operator {operator_name(node)} has no functional form.",
            "Write it out of place in the model.",
        )
    overload: torch._ops.OpOverload = getattr(packet, target._overloadname)
    return overload


def _refuse_aliases(node: fx.Node, written: fx.Node, order: dict[fx.Node, int]) -> None:
    """A write shows in every other view of the same memory, which no local rewrite can express."""
    memory = _memory(written)
    for alias in order:
        if alias is written or order[alias] > order[node] or _memory(alias) is not memory:
            continue
        later = [user for user in alias.users if order[user] > order[node]]
        if later:
            raise QDeployError(
                f"{operator_name(node)} writes into memory that {later[0].name} reads afterwards through another view.",
                "Write it out of place in the model.",
            )


def _memory(node: fx.Node) -> fx.Node:
    """The node whose memory a view looks at: the node itself if it is no view."""
    while node.op == "call_function" and operator_name(node) in _VIEWS and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node
