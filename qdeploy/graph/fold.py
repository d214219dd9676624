"""Fold what multiplies and shifts channels (batch norm, a learned scale) into the layer before it.

After capture and folding, two graphs of the same model have the same nodes and names, whatever is done to them next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qdeploy.graph import attention
from qdeploy.graph.identities import drop_identities, fold_constants
from qdeploy.graph.layers import LAYER
from qdeploy.graph.linear import products_to_linear
from qdeploy.graph.moves import splits_to_slices
from qdeploy.graph.operators import (
    argument,
    delete_unused_parameters,
    is_operator,
    set_parameter,
    shape_of,
    stored,
    tensor_at,
)

aten = torch.ops.aten

# Output channels of the weight, by operator; a transposed convolution keeps them second.
_CHANNEL_AXIS = {"aten.conv1d": 0, "aten.conv2d": 0, "aten.conv3d": 0, "aten.linear": 0, "aten.conv_transpose2d": 1}
_DEPTHWISE = {3: aten.conv1d.default, 4: aten.conv2d.default}  # by the rank of what is normalized


@dataclass(frozen=True, slots=True)
class Affine:
    """y = x * gain + offset, both float64 of shape [C] along ``axis`` of y, or [1] for all of it (``axis`` None)."""

    source: fx.Node
    gain: Tensor
    offset: Tensor
    axis: int | None


@dataclass(slots=True)
class FoldedNorm:
    """A batch norm that went into a layer, and the layer's parameters before: what training needs to bring it back.

    ``weight`` [C_out, ...] and ``bias`` [C_out] or None are those of the layer alone; ``gamma``, ``beta``, ``mean`` and
    ``variance`` are float32 [C_out]. What was folded behind the batch norm is in ``gamma`` and ``beta``.
    """

    weight: Tensor
    bias: Tensor | None
    gamma: Tensor
    beta: Tensor
    mean: Tensor
    variance: Tensor
    eps: float
    momentum: float


def fold(graph_module: fx.GraphModule) -> dict[str, FoldedNorm]:
    """Drop identities, compute constants and fold every affine operator of an eval-mode graph, in place.

    Returns the batch norms that went into layers, by layer name. Attention is taken apart first (attention.py), so that
    its scale folds like any other.

    A batch norm, or a sum or product with a stored tensor or a number, goes into the weight and bias of the
    convolution or linear layer before it if nobody else reads that. A batch norm that stands alone on images or
    sequences (behind a concatenation, say) becomes a depthwise convolution with one tap, which has an integer kernel
    where batch norm has none.
    """
    drop_identities(graph_module)
    splits_to_slices(graph_module.graph)  # a part of a stored tensor is one as well
    products_to_linear(graph_module)  # before w.T becomes a tensor of its own: a tied table stays tied
    fold_constants(graph_module)
    products_to_linear(graph_module)
    attention.normalize(graph_module)
    norms: dict[str, FoldedNorm] = {}
    for node in list(graph_module.graph.nodes):
        affine = _affine(graph_module, node)
        if affine is None:
            continue
        if _folds_into(affine):
            _remember(graph_module, node, affine, norms)
            _scale_layer(graph_module, affine)
            node.replace_all_uses_with(affine.source)
            graph_module.graph.erase_node(node)
        elif is_operator(node, "aten.batch_norm") and len(shape_of(node)) in _DEPTHWISE:
            _to_depthwise(graph_module, node, affine)
    graph_module.graph.eliminate_dead_code()
    graph_module.graph.lint()
    graph_module.delete_all_unused_submodules()
    delete_unused_parameters(graph_module)
    graph_module.recompile()
    return norms


def _remember(graph_module: fx.GraphModule, node: fx.Node, affine: Affine, norms: dict[str, FoldedNorm]) -> None:
    """Record the first batch norm that goes into a layer; what follows it scales and shifts its output."""
    layer = affine.source
    name = layer.meta[LAYER]
    if name in norms:
        norm = norms[name]
        norm.gamma = (norm.gamma.double() * affine.gain).float()
        norm.beta = (norm.beta.double() * affine.gain + affine.offset).float()
        return
    if not is_operator(node, "aten.batch_norm"):
        return

    def load(parameter: fx.Node | None) -> Tensor | None:
        return None if parameter is None else tensor_at(graph_module, str(parameter.target)).detach().clone()

    gamma, beta, mean, variance = (load(argument(node, i, n)) for i, n in enumerate(
        ("weight", "bias", "running_mean", "running_var"), start=1))  # fmt: skip
    weight, bias = load(argument(layer, 1, "weight")), load(argument(layer, 2, "bias"))
    assert weight is not None
    assert mean is not None
    assert variance is not None
    gamma, beta = torch.ones_like(mean) if gamma is None else gamma, torch.zeros_like(mean) if beta is None else beta
    eps, momentum = argument(node, 7, "eps", 1e-5), argument(node, 6, "momentum", 0.1)
    norms[name] = FoldedNorm(weight, bias, gamma, beta, mean, variance, eps, momentum)


def _affine(graph_module: fx.GraphModule, node: fx.Node) -> Affine | None:
    """What a node does to each channel of its first argument, if that is all it does."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or stored(source):
        return None
    if is_operator(node, "aten.batch_norm"):
        return _batch_norm(graph_module, node, source)
    if not is_operator(node, "aten.add", "aten.sub", "aten.mul", "aten.div") or len(node.args) < 2:
        return None
    other = node.args[1]
    if isinstance(other, int | float):
        value, axis = torch.tensor([float(other)], dtype=torch.float64), None
    elif stored(other) and shape_of(node) == shape_of(source):
        tensor = tensor_at(graph_module, str(other.target)).detach()  # type: ignore[union-attr]
        axes = [len(shape_of(node)) - tensor.dim() + i for i, size in enumerate(tensor.shape) if size != 1]
        if len(axes) > 1 or not tensor.dtype.is_floating_point:
            return None
        value, axis = tensor.double().reshape(-1), axes[0] if axes else None
    else:
        return None
    value = value * argument(node, 2, "alpha", 1) if is_operator(node, "aten.add", "aten.sub") else value
    one, zero = torch.ones_like(value), torch.zeros_like(value)
    if is_operator(node, "aten.add", "aten.sub"):
        return Affine(source, one, value if is_operator(node, "aten.add") else -value, axis)
    if is_operator(node, "aten.div") and node.kwargs.get("rounding_mode") is not None:
        return None
    return Affine(source, value if is_operator(node, "aten.mul") else one / value, zero, axis)


def _batch_norm(graph_module: fx.GraphModule, node: fx.Node, source: fx.Node) -> Affine | None:
    gamma, beta, mean, variance = (argument(node, i, n) for i, n in enumerate(
        ("weight", "bias", "running_mean", "running_var"), start=1))  # fmt: skip
    if not (stored(mean) and stored(variance)) or argument(node, 5, "training"):
        return None  # statistics of the batch itself: it stays what it is

    def load(parameter: fx.Node) -> Tensor:
        return tensor_at(graph_module, str(parameter.target)).detach().double()

    if not all(parameter is None or stored(parameter) for parameter in (gamma, beta)):
        return None
    gain = torch.rsqrt(load(variance) + argument(node, 7, "eps", 1e-5))
    gain = gain if gamma is None else gain * load(gamma)
    offset = -load(mean) * gain
    return Affine(source, gain, offset if beta is None else offset + load(beta), axis=1)


def _folds_into(affine: Affine) -> bool:
    producer = affine.source
    if not is_operator(producer, *_CHANNEL_AXIS) or len(producer.users) != 1:
        return False
    # On [N, L, C] a linear layer's channels are the last axis, batch norm's the second.
    channels = len(shape_of(producer)) - 1 if is_operator(producer, "aten.linear") else 1
    if affine.axis not in (None, channels):
        return False
    weight, bias = argument(producer, 1, "weight"), argument(producer, 2, "bias")
    if not stored(weight) or not (bias is None or stored(bias)):
        return False
    # A grouped transposed convolution keeps its output channels in two axes of the weight.
    return not (is_operator(producer, "aten.conv_transpose2d") and argument(producer, 6, "groups", 1) != 1)


def _scale_layer(graph_module: fx.GraphModule, affine: Affine) -> None:
    layer = affine.source
    weight_node, bias_node = argument(layer, 1, "weight"), argument(layer, 2, "bias")
    weight = tensor_at(graph_module, weight_node.target).detach()
    axis = next(a for name, a in _CHANNEL_AXIS.items() if is_operator(layer, name))
    shape = [1] * weight.dim()
    shape[axis] = -1
    scaled = (weight.double() * affine.gain.reshape(shape)).to(weight.dtype)
    offset = affine.offset.expand(weight.shape[axis])
    if bias_node is not None:
        offset = offset + tensor_at(graph_module, bias_node.target).detach().double() * affine.gain
    keeps_none = bias_node is None and not offset.any()
    _set_weight_and_bias(graph_module, layer, scaled, None if keeps_none else offset.to(weight.dtype))


def _to_depthwise(graph_module: fx.GraphModule, node: fx.Node, affine: Affine) -> None:
    """X * gain + offset per channel is a depthwise convolution with one tap.

    Its weight quantizes without error: one weight a channel is always a full-scale code.
    """
    channels, spatial = affine.gain.numel(), len(shape_of(node)) - 2
    ones = [1] * spatial
    with graph_module.graph.inserting_before(node):
        conv = graph_module.graph.call_function(
            _DEPTHWISE[spatial + 2], (affine.source, None, None, ones, [0] * spatial, ones, channels)
        )
    conv.meta.update(node.meta)
    node.replace_all_uses_with(conv)
    graph_module.graph.erase_node(node)
    weight = affine.gain.float().reshape(channels, 1, *ones)
    _set_weight_and_bias(graph_module, conv, weight, affine.offset.float())


def _set_weight_and_bias(graph_module: fx.GraphModule, layer: fx.Node, weight: Tensor, bias: Tensor | None) -> None:
    """Give a layer parameters of its own under its own name: a weight shared with another layer stays untouched."""
    name = layer.meta[LAYER]
    arguments: list[Any] = [*layer.args, *[None] * (3 - len(layer.args))]
    kwargs = {key: value for key, value in layer.kwargs.items() if key not in ("weight", "bias")}
    for index, (kind, value) in enumerate((("weight", weight), ("bias", bias)), start=1):
        if value is None:
            arguments[index] = None
            continue
        path = f"{name}.{kind}"
        if _read_by_others(graph_module.graph, path, layer):
            path = f"{name}.folded_{kind}"
        set_parameter(graph_module, path, value)
        with graph_module.graph.inserting_before(layer):
            arguments[index] = graph_module.graph.get_attr(path)
        arguments[index].meta["val"] = value
    layer.args, layer.kwargs = tuple(arguments), kwargs


def _read_by_others(graph: fx.Graph, path: str, layer: fx.Node) -> bool:
    return any(set(node.users) - {layer} for node in graph.nodes if node.op == "get_attr" and node.target == path)
