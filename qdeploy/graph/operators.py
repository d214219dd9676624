"""Small questions about the nodes of a captured graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx


def operator_name(node: fx.Node) -> str:
    """The operator without its overload: "aten.conv2d" for a call of torch.ops.aten.conv2d.default."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._schema.name.split('::')[-1]}"
    return getattr(target, "__name__", str(target))


def is_operator(node: fx.Node, *names: str) -> bool:
    """Whether ``node`` calls one of the operators ``names`` ("aten.conv2d"), in any overload."""
    return node.op == "call_function" and operator_name(node) in names


def argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """An argument of an ATen call, wherever it was passed."""
    if len(node.args) > index:
        return node.args[index]
    return node.kwargs.get(name, default)


def tensor_at(module: torch.nn.Module, path: str) -> Tensor:
    """The parameter or buffer at a dotted path."""
    owner, _, name = path.rpartition(".")
    value = getattr(module.get_submodule(owner), name)
    assert isinstance(value, Tensor)
    return value


def set_parameter(module: torch.nn.Module, path: str, value: Tensor) -> None:
    """Put a parameter at a dotted path, making plain modules on the way."""
    owner, _, name = path.rpartition(".")
    for part in owner.split(".") if owner else []:
        if part not in module._modules:
            module.add_module(part, torch.nn.Module())
        module = module._modules[part]  # type: ignore[assignment]
    if name in module._buffers:
        del module._buffers[name]
    module._parameters[name] = torch.nn.Parameter(value, value.is_floating_point())


def delete_unused_parameters(graph_module: fx.GraphModule) -> None:
    """Delete the parameters and buffers of the model that its graph no longer reads; those of its modules stay."""
    nodes = graph_module.graph.nodes
    used = {str(node.target) for node in nodes if node.op == "get_attr"}
    called = tuple(f"{node.target}." for node in nodes if node.op == "call_module")
    for name in [n for n, _ in (*graph_module.named_parameters(), *graph_module.named_buffers())]:
        if name not in used and not name.startswith(called):
            owner, _, leaf = name.rpartition(".")
            delattr(graph_module.get_submodule(owner), leaf)


def stored(node: Any) -> bool:
    """Whether ``node`` is a parameter or buffer of the model."""
    return isinstance(node, fx.Node) and node.op == "get_attr"


def shape_of(node: fx.Node) -> tuple[Any, ...]:
    """The captured shape: ints, and a symbol for the batch."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def is_tensor(node: Any) -> bool:
    """Whether ``node`` yields a floating-point tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.dtype.is_floating_point


def outputs(graph: fx.Graph) -> Iterator[fx.Node]:
    """The nodes that the graph returns."""
    for node in graph.nodes:
        if node.op == "output":
            yield from node.all_input_nodes


def value_of(node: fx.Node) -> Tensor:
    """The captured value of a node: a tensor without data, with the node's shape and dtype."""
    value = node.meta["val"]
    assert isinstance(value, Tensor)
    return value
