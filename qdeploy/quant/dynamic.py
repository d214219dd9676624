"""Layers whose activations their kernels quantize at run time, in exactly the kernels' arithmetic.

onnxruntime's DynamicQuantizeLSTM and DynamicQuantizeMatMul multiply int8 weights by uint8 codes of what they read,
whose range is that of the call: of all samples and steps of an LSTM's input, and of all samples' states of one step.
So an answer depends on what else is in the batch, and everything that is claimed of such a model is claimed of one
sample a call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from qdeploy.graph.operators import argument
from qdeploy.quant.placement import Placement, QuantizedLayer
from qdeploy.quant.quantizer import StoredWeight


@torch.library.custom_op("qdeploy::dynamic_linear", mutates_args=())
def dynamic_linear(x: Tensor, codes: Tensor, scale: Tensor, zero_point: Tensor, bias: Tensor | None) -> Tensor:
    """``x`` [N, K] quantized with its own range, times int8 ``codes`` [K, M] of ``scale`` [M], plus ``bias`` [M].

    Zero points are zeros, here and below: they are arguments because the operators of the artifact have them.
    """
    return _product(x, codes, scale) + (0.0 if bias is None else bias)


@dynamic_linear.register_fake
def _(x: Tensor, codes: Tensor, scale: Tensor, zero_point: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], codes.shape[1])


@torch.library.custom_op("qdeploy::dynamic_lstm", mutates_args=())
def dynamic_lstm(
    x: Tensor, w_codes: Tensor, w_scale: Tensor, w_zero_point: Tensor, r_codes: Tensor, r_scale: Tensor,
    r_zero_point: Tensor, bias: Tensor | None, bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``qdeploy::lstm`` on int8 codes [D, I, 4 * H] and [D, H, 4 * H] with scales [D, 4 * H], gates i, o, f, c.

    All of ``x`` [T, N, I] is quantized at once, the states of each direction and step [N, H] when their turn comes.
    """
    directions, hidden = r_codes.shape[:2]
    flat = x.reshape(-1, x.shape[-1])
    found = []
    for d in range(directions):
        gates = _product(flat, w_codes[d], w_scale[d]).reshape(*x.shape[:2], -1)
        if bias is not None:
            gates = gates + bias[d].reshape(2, -1).sum(0)
        h = c = x.new_zeros(x.shape[1], hidden)
        states: list[Tensor] = []
        for step in gates.flip(0) if d else gates:
            i, o, f, g = (step + _product(h, r_codes[d], r_scale[d])).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states.append(h)
        found.append((torch.stack(states[::-1] if d else states), h, c))
    y, last, cell = (torch.stack(parts, dim=int(i == 0)) for i, parts in enumerate(zip(*found, strict=True)))
    return y, last, cell


@dynamic_lstm.register_fake
def _(
    x: Tensor, w_codes: Tensor, w_scale: Tensor, w_zero_point: Tensor, r_codes: Tensor, r_scale: Tensor,
    r_zero_point: Tensor, bias: Tensor | None, bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    directions, hidden = r_codes.shape[:2]
    last = [x.new_empty(directions, x.shape[1], hidden) for _ in range(2)]
    return x.new_empty(x.shape[0], directions, x.shape[1], hidden), last[0], last[1]


def _product(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """``x`` [N, K] as DynamicQuantizeLinear quantizes it, times ``codes`` [K, M]; the sums are exact in float64."""
    low, high = x.min().clamp_max(0.0), x.max().clamp_min(0.0)
    step = torch.where(high > low, (high - low) / 255, 1.0)
    zero_point = torch.round(-low / step).clamp(0, 255)
    codes_x = (torch.round(x / step) + zero_point).clamp(0, 255) - zero_point
    return (codes_x.double() @ codes.double()).float() * (step * scale)


def convert(graph_module: fx.GraphModule, placement: Placement) -> None:
    """Give every such layer, whose weights have their codes, the operator that computes as its kernel, in place."""
    for layer in placement.layers:
        if layer.input is not None:
            continue
        if layer.recurrent and not layer.of_states:
            states = next(other for other in placement.layers if other.node is layer.node and other.of_states)
            _convert_lstm(graph_module, layer, states)
        elif layer.node.target is torch.ops.aten.linear.default:
            codes = layer.weight.tensor
            arguments = _store(graph_module, layer, codes.codes.T, codes.scale)
            _replace(
                layer.node, torch.ops.qdeploy.dynamic_linear.default, (*arguments, argument(layer.node, 2, "bias"))
            )


def _convert_lstm(graph_module: fx.GraphModule, inputs: QuantizedLayer, states: QuantizedLayer) -> None:
    bias, bidirectional = argument(inputs.node, 3, "bias"), argument(inputs.node, 4, "bidirectional")
    directions = 2 if bidirectional else 1
    arguments: list[fx.Node] = []
    for layer in (inputs, states):
        codes = layer.weight.tensor
        by_direction = codes.codes.reshape(directions, -1, codes.codes.shape[1])
        arguments += _store(graph_module, layer, by_direction.swapaxes(1, 2), codes.scale.reshape(directions, -1))
    _replace(inputs.node, torch.ops.qdeploy.dynamic_lstm.default, (*arguments, bias, bidirectional))


def _store(graph_module: fx.GraphModule, layer: QuantizedLayer, codes: np.ndarray, scale: np.ndarray) -> list[fx.Node]:
    """Store codes in a kernel's layout beside a weight's quantizer, which an embedding may read as well.

    Returns the nodes that read the codes, the scales and the zero points.
    """
    path = f"{layer.weight_call.target}_of_kernel"
    graph_module.add_submodule(path, StoredWeight(codes, scale, layer.weight.scheme))
    made = []
    for name in ("codes", "scale", "zero_point"):
        with graph_module.graph.inserting_before(layer.node):
            made.append(graph_module.graph.get_attr(f"{path}.{name}"))
        made[-1].meta["val"] = getattr(graph_module.get_submodule(path), name)
    return made


def _replace(node: fx.Node, target: torch._ops.OpOverload, arguments: tuple[Any, ...]) -> None:
    node.target, node.args, node.kwargs = target, (node.args[0], *arguments), {}
