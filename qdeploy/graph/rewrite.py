"""Make nodes in a captured graph that carry on the metadata of those they stand for."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from qdeploy.graph.layers import LAYER, unique_layer


def insert(
    graph: fx.Graph, target: Any, args: tuple[Any, ...], value: Tensor, *, before: fx.Node, like: fx.Node,
    suffix: str = "",
) -> fx.Node:  # fmt: skip
    """A new call before another, with the metadata of ``like`` and ``suffix`` behind its layer's name."""
    with graph.inserting_before(before):
        node = graph.call_function(target, args)
    derive(node, like, suffix)
    node.meta["val"] = value
    return node


def derive(node: fx.Node, origin: fx.Node, suffix: str = "") -> None:
    """Give a node the metadata of another, its value excepted, and a layer name behind that one's."""
    node.meta.update({key: item for key, item in origin.meta.items() if key != "val"})
    if suffix:
        node.meta[LAYER] = unique_layer(node.graph, origin.meta[LAYER] + suffix)
