"""LSTM layers, one node each, with inputs, weights and outputs laid out as ONNX lays them out.

torch.nn.LSTM is captured as one operator for all its layers and directions, whose weights an exporter would have to
cut and join at run time. Here each layer is ``qdeploy::lstm``: what lies between two layers is a value of the graph,
a weight is one stored matrix whose rows are output channels, and quantizers find both.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode

from qdeploy.core.errors import QDeployError
from qdeploy.graph.layers import LAYER
from qdeploy.graph.operators import argument, is_operator, set_parameter, shape_of, stored, tensor_at, value_of
from qdeploy.graph.rewrite import insert

aten = torch.ops.aten

LSTM = "qdeploy.lstm"
# Where torch's gates i, f, g, o stand among ONNX's i, o, f, c, and the other way round.
_ONNX_GATES, _TORCH_GATES = [0, 3, 1, 2], [0, 2, 3, 1]

_LIBRARY = torch.library.Library("qdeploy", "FRAGMENT")
_LIBRARY.define(
    "lstm(Tensor x, Tensor weight_ih, Tensor weight_hh, Tensor? bias, bool bidirectional) -> (Tensor, Tensor, Tensor)"
)


def _lstm(
    x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor | None, bidirectional: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One LSTM layer from zero states, by torch's own operator: it has a gradient, on every device.

    ``x`` [T, N, I]; ``weight_ih`` [D * 4 * H, I] and ``weight_hh`` [D * 4 * H, H], the forward direction's gates i, o,
    f, c and then the backward one's; ``bias`` [D, 8 * H], of the input's products and then of the state's. Returns all
    hidden states [T, D, N, H], the last ones and the last cell states [D, N, H].
    """
    directions, hidden = 2 if bidirectional else 1, weight_hh.shape[1]
    if detect_fake_mode((x,)) is not None:  # torch would find these shapes by tracing every step
        states, last = (x.shape[0], directions, x.shape[1], hidden), (directions, x.shape[1], hidden)
        return x.new_empty(states), x.new_empty(last), x.new_empty(last)
    zeros = x.new_zeros(directions, x.shape[1], hidden)
    parameters: list[Tensor] = []
    for direction in range(directions):
        parameters += [
            reordered(weight.chunk(directions)[direction], _TORCH_GATES) for weight in (weight_ih, weight_hh)
        ]
        if bias is not None:
            parameters += [reordered(half, _TORCH_GATES) for half in bias[direction].chunk(2)]
    # In training mode, in which cuDNN has gradients; without dropout it is the same function.
    biased, layers, dropout, train, batch_first = bias is not None, 1, 0.0, True, False
    y, h, c = aten.lstm.input(
        x, [zeros, zeros], parameters, biased, layers, dropout, train, bidirectional, batch_first
    )  # fmt: skip
    return y.reshape(y.shape[0], y.shape[1], directions, hidden).transpose(1, 2), h, c


_LIBRARY.impl("lstm", _lstm, "CompositeImplicitAutograd")


@contextmanager
def shapes_without_steps() -> Iterator[None]:
    """While a model is captured: find the shapes of torch's LSTM at once, where torch would trace every step.

    Tracing 200 steps takes a third of a minute. torch has no public way to say what an operator of its own returns.
    """
    operator_of_torch = aten.lstm.input
    kernels = dict(operator_of_torch.py_kernels)
    try:
        operator_of_torch.py_kernels.update(dict.fromkeys(kernels, _shapes_of_torch))
        operator_of_torch._dispatch_cache.clear()
        yield
    finally:
        operator_of_torch.py_kernels.update(kernels)
        operator_of_torch._dispatch_cache.clear()


def _shapes_of_torch(
    x: Tensor, states: list[Tensor], parameters: list[Tensor], biased: bool, layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    h, c = states
    width = h.shape[-1] * (2 if bidirectional else 1)
    return x.new_empty((*x.shape[:-1], width)), h.new_empty(h.shape), c.new_empty(c.shape)


def reordered(gates: Tensor, order: list[int]) -> Tensor:
    """Rows [4 * H, ...] of the four gates in another order."""
    rows: Tensor = gates.unflatten(0, (4, -1))[order].flatten(0, 1)
    return rows


def split_layers(graph_module: fx.GraphModule) -> None:
    """Make every torch LSTM that starts from zeros a ``qdeploy::lstm`` for each of its layers, in place.

    One with an initial state or on packed sequences is left as it is. QDeployError: one has projections, which ONNX's
    LSTM does not know (torch.onnx exports another function).
    """
    for node in list(graph_module.graph.nodes):
        if not is_operator(node, "aten.lstm"):
            continue
        if _has_projections(node):
            raise QDeployError(
                f"Layer {_own_name(node)!r} is an LSTM with projections, which ONNX does not have.",
                "Leave proj_size away, and put a linear layer behind the LSTM where its output is to be smaller.",
            )
        if _is_plain(node):
            _split(graph_module, node)


def _has_projections(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or node.target._overloadname != "input":
        return False
    hidden, cell = argument(node, 1, "hx")
    return bool(shape_of(hidden)[-1] != shape_of(cell)[-1])


def _is_plain(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or node.target._overloadname != "input":
        return False
    _, states, parameters, has_biases, layers, _, _, bidirectional, _ = node.args
    count = layers * (2 if bidirectional else 1) * (4 if has_biases else 2)  # type: ignore[operator]
    zeros = all(is_operator(s, "aten.zeros", "aten.zeros_like", "aten.new_zeros") for s in states)  # type: ignore[union-attr,arg-type]
    batched = len(shape_of(node.args[0])) == 3  # type: ignore[arg-type]
    return batched and zeros and len(parameters) == count and all(map(stored, parameters))  # type: ignore[arg-type]


def _own_name(node: fx.Node) -> str:
    """torch.nn.LSTM's path, which went to the last of its results, all of which are about to be made anew."""
    name: str = node.meta[LAYER]
    return next((user.meta[LAYER] for user in node.users if name.startswith(user.meta[LAYER])), name)


def _split(graph_module: fx.GraphModule, node: fx.Node) -> None:
    arguments: tuple[Any, ...] = node.args
    x, _, parameters, has_biases, layers, _, _, bidirectional, batch_first = arguments
    directions, graph = (2 if bidirectional else 1), graph_module.graph
    tensors = [tensor_at(graph_module, str(p.target)).detach() for p in parameters]
    each = len(tensors) // layers

    def add(target: Any, args: tuple[Any, ...], value: Any, suffix: str) -> fx.Node:
        return insert(graph, target, args, value, before=node, like=node, suffix=suffix)

    assert isinstance(x, fx.Node)
    node.meta[LAYER] = _own_name(node)
    if batch_first:
        x = add(aten.transpose.int, (x, 0, 1), value_of(x).transpose(0, 1), ".time_major")
    states: list[tuple[fx.Node, fx.Node]] = []
    for layer in range(layers):
        name = "" if layers == 1 else f".{layer}"
        own = tensors[each * layer : each * (layer + 1)]
        x, *last = _layer(graph_module, node, x, own, directions, bool(has_biases), name)
        states.append((last[0], last[1]))
    if batch_first:
        x = add(aten.transpose.int, (x, 0, 1), value_of(x).transpose(0, 1), ".batch_first")
    for user in list(node.users):
        which = argument(user, 1, "index")
        user.replace_all_uses_with(x if which == 0 else _joined(graph, node, [pair[which - 1] for pair in states]))
        graph.erase_node(user)
    graph.erase_node(node)


def _layer(
    graph_module: fx.GraphModule, node: fx.Node, x: fx.Node, tensors: list[Tensor], directions: int, biased: bool,
    name: str,
) -> tuple[fx.Node, fx.Node, fx.Node]:  # fmt: skip
    """One layer of ``node`` on ``x`` [T, N, I]: its states [T, N, D * H], the last ones and the last cell states."""
    graph = graph_module.graph
    by_direction = [tensors[i :: len(tensors) // directions] for i in range(len(tensors) // directions)]
    w, r, *biases = (torch.cat([reordered(t, _ONNX_GATES) for t in ts]) for ts in by_direction)
    bias = torch.cat([b.unflatten(0, (directions, -1)) for b in biases], dim=1) if biased else None
    value, hidden = value_of(x), r.shape[1]
    values = (
        value.new_empty((value.shape[0], directions, value.shape[1], hidden)),
        *(value.new_empty((directions, value.shape[1], hidden)) for _ in range(2)),
    )
    whole = insert(graph, torch.ops.qdeploy.lstm.default, (), values, before=node, like=node, suffix=name)  # type: ignore[arg-type]
    stored = (
        None if tensor is None else _parameter(graph_module, whole, kind, tensor)
        for kind, tensor in (("weight_ih", w), ("weight_hh", r), ("bias", bias))
    )
    whole.args = (x, *stored, directions == 2)

    def add(target: Any, args: tuple[Any, ...], value: Any, suffix: str) -> fx.Node:
        return insert(graph, target, args, value, before=node, like=whole, suffix=suffix)

    y, h, c = (
        add(operator.getitem, (whole, i), v, suffix)
        for i, (v, suffix) in enumerate(zip(values, (".states", ".last_state", ".last_cell"), strict=True))
    )
    if directions == 1:
        return add(aten.squeeze.dim, (y, 1), values[0].squeeze(1), ".forward"), h, c
    turned = add(aten.permute.default, (y, [0, 2, 1, 3]), values[0].permute(0, 2, 1, 3), ".by_sample")
    flat, time = turned.meta["val"].flatten(2), int(value.shape[0])
    return add(aten.reshape.default, (turned, [time, -1, 2 * hidden]), flat, ".both"), h, c


def _parameter(graph_module: fx.GraphModule, node: fx.Node, kind: str, tensor: Tensor) -> fx.Node:
    path = f"{node.meta[LAYER]}.{kind}"
    set_parameter(graph_module, path, tensor.contiguous())
    with graph_module.graph.inserting_before(node):
        made = graph_module.graph.get_attr(path)
    made.meta["val"] = tensor
    return made


def _joined(graph: fx.Graph, node: fx.Node, parts: list[fx.Node]) -> fx.Node:
    """The states of all layers and directions [L * D, N, H], as torch returns them."""
    if len(parts) == 1:
        return parts[0]
    value = value_of(parts[0])
    joined = value.new_empty((value.shape[0] * len(parts), *value.shape[1:]))
    return insert(graph, aten.cat.default, (parts, 0), joined, before=node, like=node, suffix=".all_layers")
