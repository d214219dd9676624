"""Attention as what it is made of: a product of queries and keys, a mask, a softmax, a product with the values.

Each product then has an integer kernel of its own. The factor 1 / sqrt(d) goes to the queries, and from there into the
weights of the layer that computes them, however its output is split and turned on the way: no multiplication is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from qdeploy.graph.identities import constant_value
from qdeploy.graph.layers import LAYER
from qdeploy.graph.operators import argument, is_operator, set_parameter, shape_of, stored, tensor_at, value_of
from qdeploy.graph.rewrite import derive, insert

aten = torch.ops.aten

_MOVES = tuple(f"aten.{name}" for name in ("reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute",
                                           "transpose", "slice", "select"))  # fmt: skip


def normalize(graph_module: fx.GraphModule) -> None:
    """Rewrite the attention and the batched products of a graph, in place; what is no plain one stays what it is."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if is_operator(node, "aten.scaled_dot_product_attention"):
            _decompose(graph_module, node)
        elif is_operator(node, "aten.bmm"):
            node.target = aten.matmul.default
        elif is_operator(node, "aten.baddbmm") and all(argument(node, *n, 1) == 1 for n in ((3, "beta"), (4, "alpha"))):
            mask, a, b = node.args[:3]
            product = insert(graph, aten.matmul.default, (a, b), value_of(node), before=node, like=node,
                             suffix=".product")  # fmt: skip
            node.target, node.args, node.kwargs = aten.add.Tensor, (product, mask), {}
    for node in list(graph.nodes):
        if is_operator(node, "aten.matmul"):
            _scale_before(graph_module, node)
    for node in list(graph.nodes):
        if _number(graph_module, node) is not None and any(is_operator(user, "aten.matmul") for user in node.users):
            _scale_layer(graph_module, node)


def _decompose(graph_module: fx.GraphModule, node: fx.Node) -> None:
    """softmax(q k^T * scale + mask) v."""
    graph, (query, key, value) = graph_module.graph, node.args[:3]
    assert isinstance(query, fx.Node)
    assert isinstance(key, fx.Node)
    mask, causal = argument(node, 3, "attn_mask"), argument(node, 5, "is_causal", False)
    if argument(node, 4, "dropout_p", 0.0) or node.kwargs.get("enable_gqa"):
        return
    given = node.kwargs.get("scale")
    scale = 1 / math.sqrt(shape_of(query)[-1]) if given is None else given

    def add(target: Any, args: tuple[Any, ...], value: Tensor, suffix: str) -> fx.Node:
        return insert(graph, target, args, value, before=node, like=node, suffix=suffix)

    turned = value_of(key).transpose(-2, -1)
    scaled = add(aten.mul.Tensor, (query, scale), value_of(query), ".scale")
    keys = add(aten.transpose.int, (key, -2, -1), turned, ".transpose")
    scores = (value_of(query) @ turned).detach()
    logits = add(aten.matmul.default, (scaled, keys), scores, ".scores")
    safe = False
    if causal:
        # Computed, not stored: of 200 positions it has 160 kB. On the device of the logits, wherever they are.
        above = add(aten.new_full.default, (logits, list(scores.shape[-2:]), -math.inf),
                    scores.new_empty(scores.shape[-2:]), ".infinity")  # fmt: skip
        above = add(aten.triu.default, (above, 1), value_of(above), ".causal")
        logits = add(aten.add.Tensor, (logits, above), scores, ".mask")
    elif mask is not None:
        safe = _hides_everything(graph_module, mask)
        if value_of(mask).dtype == torch.bool:
            hidden = add(aten.logical_not.default, (mask,), value_of(mask), ".hidden")
            logits = add(aten.masked_fill.Scalar, (logits, hidden, -math.inf), scores, ".mask")
        else:
            logits = add(aten.add.Tensor, (logits, mask), scores, ".mask")
    # A query that may look at nothing gets zeros, as from torch's own kernels, and not 0 / 0.
    softmax = aten._safe_softmax.default if safe else aten.softmax.int
    shares = add(softmax, (logits, -1), scores, ".softmax")
    node.target, node.args, node.kwargs = aten.matmul.default, (shares, value), {}


def _hides_everything(graph_module: fx.GraphModule, mask: fx.Node) -> bool:
    """Whether a mask may leave a query without anything to look at: a computed one may."""
    known = constant_value(graph_module, mask)
    if known is None:
        return True
    visible = known if known.dtype == torch.bool else known > -math.inf
    return not bool(visible.any(-1).all())


def _scale_before(graph_module: fx.GraphModule, product: fx.Node) -> None:
    """(a @ b) * c becomes (a * c) @ b: fewer values to multiply, and a layer before it that may take them in."""
    users = list(product.users)
    factor = _number(graph_module, users[0]) if len(users) == 1 and users[0].args[0] is product else None
    left = product.args[0]
    if factor is None or not isinstance(left, fx.Node) or any(stored(operand) for operand in product.args[:2]):
        return
    scaled = insert(graph_module.graph, aten.mul.Tensor, (left, factor), value_of(left), before=product, like=users[0])
    scaled.meta[LAYER] = users[0].meta[LAYER]
    product.replace_input_with(left, scaled)
    users[0].replace_all_uses_with(product)
    graph_module.graph.erase_node(users[0])


def _scale_layer(graph_module: fx.GraphModule, scale: fx.Node) -> None:
    """Move a multiplication by a number to the channels of the linear layer that it comes from, if all others keep."""
    layer = scale.args[0]
    while isinstance(layer, fx.Node) and is_operator(layer, *_MOVES):
        layer = layer.args[0]
    factor = _number(graph_module, scale)
    if not isinstance(layer, fx.Node) or not is_operator(layer, "aten.linear") or not stored(layer.args[1]):
        return
    assert factor is not None
    taken = torch.zeros(shape_of(layer)[-1], dtype=torch.bool)
    others = taken.clone()
    for reader, channels in _readers(layer):
        (taken if reader is scale else others)[channels.reshape(-1)] = True
    if bool((taken & others).any()):
        return
    gain, path = torch.where(taken, factor, 1.0), f"{scale.meta[LAYER]}.gain"
    set_parameter(graph_module, path, gain)
    scale.replace_all_uses_with(scale.args[0])  # type: ignore[arg-type]
    graph_module.graph.erase_node(scale)
    with graph_module.graph.inserting_after(layer):
        stored_gain = graph_module.graph.get_attr(path)
    stored_gain.meta["val"] = gain
    scaled = insert(graph_module.graph, aten.mul.Tensor, (layer, stored_gain), value_of(layer),
                    before=stored_gain.next, like=scale)  # fmt: skip
    derive(scaled, scale)
    layer.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)


def _readers(layer: fx.Node) -> Iterator[tuple[fx.Node, Tensor]]:
    """Who computes with what a linear layer gives, however it is moved before, and the channels that it reads."""
    shape = [_size(size) or 2 for size in shape_of(layer)]
    pending = [(layer, torch.arange(shape[-1]).expand(shape))]
    while pending:
        value, channels = pending.pop()
        for user in value.users:
            if isinstance(user.meta.get("val"), int | torch.SymInt):
                continue  # a size
            sizes = {node: _size(node.meta.get("val")) for node in user.all_input_nodes if node is not value}
            if is_operator(user, *_MOVES) and None not in sizes.values():
                args, kwargs = fx.map_arg((user.args[1:], dict(user.kwargs)), sizes.__getitem__)
                pending.append((user, user.target(channels, *args, **kwargs)))  # type: ignore[operator]
            else:
                yield user, channels


def _size(size: Any) -> int | None:
    """A size as a number: a symbol counts for what it was in the example. None for what is no size."""
    if isinstance(size, torch.SymInt):
        hint: int | None = size.node.hint
        return hint
    return size if isinstance(size, int) else None


def _number(graph_module: fx.GraphModule, node: fx.Node) -> float | None:
    """The number that a node multiplies its first argument with, if that is what it does."""
    if not is_operator(node, "aten.mul", "aten.div") or len(node.args) < 2 or node.kwargs:
        return None
    other = node.args[1]
    if stored(other) and not shape_of(other) and value_of(other).dtype.is_floating_point:  # type: ignore[arg-type]
        other = tensor_at(graph_module, str(other.target)).item()  # type: ignore[union-attr]
    if not isinstance(other, int | float) or isinstance(other, bool):
        return None
    return float(other) if is_operator(node, "aten.mul") else 1 / other
