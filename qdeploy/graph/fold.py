"""Remove what inference does not need: batch norm into the layer before it, dropout, identities.

After capture and folding, two graphs of the same model have the same nodes and names, whatever is done to them next.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from qdeploy.graph.capture import LAYER
from qdeploy.graph.operators import argument, is_operator, set_parameter, shape_of, stored, tensor_at

aten = torch.ops.aten

_IDENTITIES = ("aten.dropout", "aten.feature_dropout", "aten.alpha_dropout", "aten.alias", "aten.contiguous",
               "aten.clone", "aten.detach", "aten.lift_fresh_copy", "aten.identity")  # fmt: skip
# Output channels of the weight, by operator; a transposed convolution keeps them second.
_CHANNEL_AXIS = {"aten.conv1d": 0, "aten.conv2d": 0, "aten.conv3d": 0, "aten.linear": 0, "aten.conv_transpose2d": 1}


def fold(graph_module: fx.GraphModule) -> None:
    """Fold every batch norm of an eval-mode graph and drop identities, in place.

    A batch norm whose only input is a convolution or linear layer that nobody else reads goes into its weight and
    bias. One that stands alone on images (behind a concatenation, say) becomes a 1x1 depthwise convolution, which has
    an integer kernel where batch norm has none.
    """
    drop_identities(graph_module)
    for node in list(graph_module.graph.nodes):
        if is_operator(node, "aten.batch_norm"):
            _fold_batch_norm(graph_module, node)
    graph_module.graph.eliminate_dead_code()
    graph_module.graph.lint()
    graph_module.delete_all_unused_submodules()
    _delete_unused_parameters(graph_module)
    graph_module.recompile()


def drop_identities(graph_module: fx.GraphModule) -> None:
    """Remove the operators that do nothing in eval mode."""
    for node in list(graph_module.graph.nodes):
        if is_operator(node, *_IDENTITIES):
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
    graph_module.recompile()


def batch_norm_affine(graph_module: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor]:
    """Batch norm in eval mode as y = x * gain + offset: both [C], float32."""
    gamma, beta = argument(node, 1, "weight"), argument(node, 2, "bias")
    mean = tensor_at(graph_module, argument(node, 3, "running_mean").target).detach().double()
    variance = tensor_at(graph_module, argument(node, 4, "running_var").target).detach().double()
    epsilon = argument(node, 7, "eps", 1e-5)
    gain = torch.rsqrt(variance + epsilon)
    if gamma is not None:
        gain = gain * tensor_at(graph_module, gamma.target).detach().double()
    offset = -mean * gain
    if beta is not None:
        offset = offset + tensor_at(graph_module, beta.target).detach().double()
    return gain, offset


def _fold_batch_norm(graph_module: fx.GraphModule, node: fx.Node) -> None:
    producer = node.args[0]
    assert isinstance(producer, fx.Node)
    if argument(node, 3, "running_mean") is None or argument(node, 5, "training"):
        return  # statistics of the batch itself: it stays what it is
    gain, offset = batch_norm_affine(graph_module, node)
    if _folds_into(producer):
        _scale_layer(graph_module, producer, gain, offset)
        node.replace_all_uses_with(producer)
        graph_module.graph.erase_node(node)
    elif len(shape_of(node)) == 4:
        _to_depthwise(graph_module, node, gain, offset)


def _folds_into(producer: fx.Node) -> bool:
    if not is_operator(producer, *_CHANNEL_AXIS) or len(producer.users) != 1:
        return False
    weight, bias = argument(producer, 1, "weight"), argument(producer, 2, "bias")
    if not stored(weight) or not (bias is None or stored(bias)):
        return False
    # A grouped transposed convolution keeps its output channels in two axes of the weight.
    return not (is_operator(producer, "aten.conv_transpose2d") and argument(producer, 6, "groups", 1) != 1)


def _scale_layer(graph_module: fx.GraphModule, producer: fx.Node, gain: Tensor, offset: Tensor) -> None:
    weight_node, bias_node = argument(producer, 1, "weight"), argument(producer, 2, "bias")
    weight = tensor_at(graph_module, weight_node.target).detach()
    axis = next(a for name, a in _CHANNEL_AXIS.items() if is_operator(producer, name))
    shape = [1] * weight.dim()
    shape[axis] = -1
    scaled = (weight.double() * gain.reshape(shape)).to(weight.dtype)
    if bias_node is not None:
        offset = offset + tensor_at(graph_module, bias_node.target).detach().double() * gain
    _set_weight_and_bias(graph_module, producer, scaled, offset.to(weight.dtype))


def _to_depthwise(graph_module: fx.GraphModule, node: fx.Node, gain: Tensor, offset: Tensor) -> None:
    """X * gain + offset per channel is a depthwise convolution with a 1x1 kernel.

    Its weight quantizes without error: one weight a channel is always a full-scale code.
    """
    channels = gain.numel()
    with graph_module.graph.inserting_before(node):
        conv = graph_module.graph.call_function(
            aten.conv2d.default, (node.args[0], None, None, [1, 1], [0, 0], [1, 1], channels)
        )
    conv.meta.update(node.meta)
    _set_weight_and_bias(graph_module, conv, gain.float().reshape(channels, 1, 1, 1), offset.float())
    node.replace_all_uses_with(conv)
    graph_module.graph.erase_node(node)


def _set_weight_and_bias(graph_module: fx.GraphModule, layer: fx.Node, weight: Tensor, bias: Tensor) -> None:
    """Give a layer parameters of its own under its own name: a weight shared with another layer stays untouched."""
    name = layer.meta[LAYER]
    arguments = list(layer.args) + [None] * (3 - len(layer.args))
    kwargs = {key: value for key, value in layer.kwargs.items() if key not in ("weight", "bias")}
    for index, (kind, value) in enumerate((("weight", weight), ("bias", bias)), start=1):
        path = f"{name}.{kind}"
        set_parameter(graph_module, path, value)
        with graph_module.graph.inserting_before(layer):
            arguments[index] = graph_module.graph.get_attr(path)
        arguments[index].meta["val"] = value
    layer.args, layer.kwargs = tuple(arguments), kwargs


def _delete_unused_parameters(graph_module: fx.GraphModule) -> None:
    used = {str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"}
    names = [n for n, _ in (*graph_module.named_parameters(), *graph_module.named_buffers()) if n not in used]
    for name in names:
        owner, _, leaf = name.rpartition(".")
        delattr(graph_module.get_submodule(owner), leaf)
