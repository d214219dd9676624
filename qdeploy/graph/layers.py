"""The name of a layer: readable, unique, the same in every graph of the model and in the artifact."""

from __future__ import annotations

from typing import Any

from torch import fx

from qdeploy.graph.operators import operator_name

LAYER = "qdeploy_layer"  # key in node.meta: the layer's readable, unique name
_LAYERS = ("torch.nn.modules.", "torch.nn.utils.parametrize.Parametrized")


def name_layers(graph_module: fx.GraphModule) -> None:
    """Give every operator node a unique readable name: its module's path, and the operator's where that is not enough.

    A module of torch.nn lends its path ("layer1.0.conv1") to the last operator of its call, which computes its
    output; other operators, and those in a user's own forward, have the operator's name behind it ("layer1.0.add").
    A module that is called again gives a name with a number ("conv1_1").
    """
    stored_names = _stored_names(graph_module)
    last = {_call(node): node for node in graph_module.graph.nodes if node.op == "call_function"}
    taken: set[str] = set()
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            name, own = str(node.target), False
        elif node.op == "call_function":
            path, is_layer = _module(node)
            own = is_layer and last[_call(node)] is node
            name = path if own else f"{path}.{_short(node)}" if path else _short(node)
        else:
            continue
        unique, count = name, 0
        # A made-up name must not be that of a stored tensor or of another module: its parameters will lie under it.
        while unique in taken or (unique in stored_names and not (own and unique == name)):
            count += 1
            unique = f"{name}_{count}"
        taken.add(unique)
        node.meta[LAYER] = unique


def unique_layer(graph: fx.Graph, name: str) -> str:
    """``name``, or with a number behind it where the graph has a layer of that name."""
    taken = {node.meta.get(LAYER) for node in graph.nodes}
    unique, count = name, 0
    while unique in taken:
        count += 1
        unique = f"{name}_{count}"
    return unique


def _stored_names(graph_module: fx.GraphModule) -> set[str]:
    """The paths of all parameters and buffers, and of the modules that hold them."""
    paths = [name for name, _ in (*graph_module.named_parameters(), *graph_module.named_buffers())]
    return {".".join(parts[: i + 1]) for parts in (path.split(".") for path in paths) for i in range(len(parts))}


def _call(node: fx.Node) -> str:
    """Which call of which module a node was traced in: the same text for all nodes of one call."""
    calls: dict[str, Any] = node.meta.get("nn_module_stack") or {"": None}
    return next(reversed(calls))


def _module(node: fx.Node) -> tuple[str, bool]:
    """The path of the innermost module that the node was traced in, and whether it is a layer of torch.nn."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "", False
    path, kind = stack[-1]
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    is_layer = kind.startswith(_LAYERS) and not kind.startswith("torch.nn.modules.container")
    return str(path), bool(path) and is_layer


def _short(node: fx.Node) -> str:
    return operator_name(node).removeprefix("aten.")
