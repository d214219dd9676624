"""Products with a stored matrix as 2-D linear layers, which are QGemm in onnxruntime."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qdeploy.graph.layers import LAYER
from qdeploy.graph.operators import argument, is_operator, set_parameter, shape_of, stored, tensor_at, value_of
from qdeploy.graph.rewrite import insert

aten = torch.ops.aten


def products_to_linear(graph_module: fx.GraphModule) -> None:
    """Make every product with a stored matrix a linear layer, in place."""
    for node in list(graph_module.graph.nodes):
        if is_operator(node, "aten.matmul", "aten.mm", "aten.addmm"):
            _product_to_linear(graph_module, node)


def flatten_linears(graph: fx.Graph) -> None:
    """Put reshapes around every linear layer on more than two dimensions, in place."""
    for node in list(graph.nodes):
        if is_operator(node, "aten.linear") and len(shape_of(argument(node, 0, "input"))) > 2:
            _flatten_linear(graph, node)


def _product_to_linear(graph_module: fx.GraphModule, node: fx.Node) -> None:
    """X @ w, and bias + x @ w, with stored w [K, M]: a linear layer with weight w.T; x @ w.T is one with w itself."""
    arguments: tuple[Any, ...] = node.args
    bias, x, w = arguments[:3] if is_operator(node, "aten.addmm") else (None, *arguments[:2])
    turned = _transposed(w)
    if not stored(turned or w) or stored(x) or len(shape_of(w)) != 2:
        return
    plain = argument(node, 3, "beta", 1) == 1 and argument(node, 4, "alpha", 1) == 1
    if bias is not None and not (stored(bias) and len(shape_of(bias)) == 1 and plain):
        return
    transposed = turned or _transpose(graph_module, node, w)
    node.target, node.kwargs = aten.linear.default, {}
    node.args = (x, transposed) if bias is None else (x, transposed, bias)


def _transposed(w: Any) -> fx.Node | None:
    """The stored matrix that ``w`` is the transpose of; None if it is none."""
    turns = isinstance(w, fx.Node) and (
        is_operator(w, "aten.t", "aten.numpy_T", "aten.mT")
        or (is_operator(w, "aten.transpose") and (w.args[1] - w.args[2]) % 2 and len(shape_of(w)) == 2)  # type: ignore[operator]
        or (is_operator(w, "aten.permute") and [int(axis) % 2 for axis in w.args[1]] == [1, 0])  # type: ignore[arg-type,union-attr]
    )
    source = w.args[0] if turns else None
    return source if isinstance(source, fx.Node) and stored(source) and len(shape_of(source)) == 2 else None


def _transpose(graph_module: fx.GraphModule, node: fx.Node, w: fx.Node) -> fx.Node:
    """A stored matrix transposed, as a stored matrix."""
    path = f"{node.meta[LAYER]}.weight"
    weight = tensor_at(graph_module, str(w.target)).detach().t().contiguous()
    set_parameter(graph_module, path, weight)
    with graph_module.graph.inserting_before(node):
        transposed = graph_module.graph.get_attr(path)
    transposed.meta["val"] = weight
    return transposed


def _flatten_linear(graph: fx.Graph, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape, out = shape_of(source), value_of(node)
    flat_value = value_of(source).reshape(-1, shape[-1])
    flat = insert(graph, aten.reshape.default, (source, [-1, int(shape[-1])]), flat_value, before=node, like=node,
                  suffix=".flatten")  # fmt: skip
    sizes = _leading_sizes(graph, source, shape, before=node)
    node.replace_input_with(source, flat)
    node.meta["val"] = out.new_empty((flat_value.shape[0], out.shape[-1]))
    after = node.next
    restored = insert(graph, aten.reshape.default, (node, [*sizes, int(out.shape[-1])]), out, before=after, like=node,
                      suffix=".unflatten")  # fmt: skip
    node.replace_all_uses_with(restored, delete_user_cb=lambda user: user is not restored)


def _leading_sizes(graph: fx.Graph, source: fx.Node, shape: tuple[Any, ...], before: fx.Node) -> list[Any]:
    """The sizes of all axes but the last: at most one is symbolic and becomes -1; more are read from the input."""
    leading = list(shape[:-1])
    if sum(not isinstance(size, int) for size in leading) <= 1:
        return [size if isinstance(size, int) else -1 for size in leading]
    sizes: list[Any] = []
    for axis, size in enumerate(leading):
        if isinstance(size, int):
            sizes.append(size)
            continue
        with graph.inserting_before(before):
            node = graph.call_function(aten.sym_size.int, (source, axis))
        node.meta["val"] = size
        sizes.append(node)
    return sizes
