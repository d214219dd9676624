"""Write equal things in one way: the form that onnxruntime has an integer kernel for.

* a mean over height and width, and an average pool to 1x1, are global average pooling;
* an adaptive average pool is a plain one where its windows are equal, and nothing where input and output agree;
* a linear layer on [N, ..., K] is a reshape, a 2-D linear layer (Gemm), and a reshape back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qdeploy.graph.capture import LAYER
from qdeploy.graph.operators import argument, is_operator, shape_of

aten = torch.ops.aten


def normalize(graph_module: fx.GraphModule) -> None:
    """Rewrite the graph in place."""
    for node in list(graph_module.graph.nodes):
        if is_operator(node, "aten.mean"):
            _mean_to_pool(graph_module.graph, node)
        elif is_operator(node, "aten.adaptive_avg_pool2d"):
            _simplify_adaptive(graph_module.graph, node)
        elif is_operator(node, "aten.linear") and len(shape_of(node.args[0])) > 2:  # type: ignore[arg-type]
            _flatten_linear(graph_module.graph, node)
    graph_module.graph.eliminate_dead_code()
    graph_module.graph.lint()
    graph_module.recompile()


def _mean_to_pool(graph: fx.Graph, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    rank, axes = len(shape_of(source)), argument(node, 1, "dim")
    if rank != 4 or axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
        return
    with graph.inserting_before(node):
        pool = graph.call_function(aten.adaptive_avg_pool2d.default, (source, [1, 1]))
        _meta(pool, node, _val(source).mean((2, 3), keepdim=True))
        if argument(node, 2, "keepdim", False):
            result = pool
        else:
            result = graph.call_function(aten.flatten.using_ints, (pool, 1))
            _meta(result, node, _val(node), suffix=".flatten")
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _simplify_adaptive(graph: fx.Graph, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    have = shape_of(source)[2:]
    want = argument(node, 1, "output_size")
    want = [want, want] if isinstance(want, int) else list(want)
    if tuple(want) == (1, 1) or not all(isinstance(size, int) for size in have):
        return
    if tuple(want) == tuple(have):
        node.replace_all_uses_with(source)
        graph.erase_node(node)
    elif all(h % w == 0 for h, w in zip(have, want, strict=True)):
        kernel = [h // w for h, w in zip(have, want, strict=True)]
        node.target, node.args, node.kwargs = aten.avg_pool2d.default, (source, kernel, kernel), {}


def _flatten_linear(graph: fx.Graph, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape, out = shape_of(source), shape_of(node)
    with graph.inserting_before(node):
        flat = graph.call_function(aten.reshape.default, (source, [-1, int(shape[-1])]))
        _meta(flat, node, _val(source).reshape(-1, shape[-1]), suffix=".flatten")
    node.replace_input_with(source, flat)
    with graph.inserting_after(node):
        sizes = _leading_sizes(graph, source, shape, after=node)
        restored = graph.call_function(aten.reshape.default, (node, [*sizes, int(out[-1])]))
    restored.meta["val"] = _val(node)
    node.replace_all_uses_with(restored, delete_user_cb=lambda user: user is not restored)
    node.meta["val"] = _val(flat).new_empty((_val(flat).shape[0], out[-1]))
    restored.meta[LAYER] = node.meta[LAYER] + ".unflatten"
    # sym_size nodes were inserted behind the linear layer; the reshape must follow them.
    for size in sizes:
        if isinstance(size, fx.Node):
            size.append(restored)


def _leading_sizes(graph: fx.Graph, source: fx.Node, shape: tuple[Any, ...], after: fx.Node) -> list[Any]:
    """The sizes of all axes but the last: at most one is symbolic and becomes -1; more are read from the input."""
    leading = list(shape[:-1])
    symbolic = [axis for axis, size in enumerate(leading) if not isinstance(size, int)]
    if len(symbolic) <= 1:
        return [size if isinstance(size, int) else -1 for size in leading]
    sizes: list[Any] = []
    for axis, size in enumerate(leading):
        if isinstance(size, int):
            sizes.append(size)
            continue
        with graph.inserting_after(after):
            node = graph.call_function(aten.sym_size.int, (source, axis))
        node.meta["val"] = size
        sizes.append(node)
    return sizes


def _val(node: fx.Node) -> torch.Tensor:
    value = node.meta["val"]
    assert isinstance(value, torch.Tensor)
    return value


def _meta(node: fx.Node, origin: fx.Node, value: torch.Tensor, suffix: str = "") -> None:
    node.meta.update({key: item for key, item in origin.meta.items() if key != "val"})
    node.meta[LAYER] = origin.meta[LAYER] + suffix
    node.meta["val"] = value
