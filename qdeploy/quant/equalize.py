"""Cross-layer equalization: move scale between the channels of neighbouring layers so that both fill their ranges.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721, section 4.1.
A ReLU lets a positive factor through: W2 f(W1 x + b1) = (W2 S) f(S^-1 W1 x + S^-1 b1) for a diagonal S > 0 (eq. 7).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qdeploy.graph.operators import argument, is_operator, shape_of, stored, tensor_at

_WEIGHTED = ("aten.conv1d", "aten.conv2d", "aten.linear")
# f(s x) = s f(x) for every s > 0, channel by channel.
_ELEMENTWISE = ("aten.relu", "aten.leaky_relu")
_POOLING = tuple(f"aten.{kind}_pool{axes}d" for kind in ("max", "avg", "adaptive_avg") for axes in (1, 2))
_RESHAPES = ("aten.flatten", "aten.reshape")

ROUNDS = 100
CONVERGED = 1e-3  # the largest change of a logarithm of a factor in the last round


@dataclass(frozen=True, slots=True)
class Pair:
    """A layer whose output channels are read by one other layer, and by nothing else.

    ``groups`` are the second layer's, and ``block`` how many of its inputs in a row come from one channel: more than 1
    behind a flattened image.
    """

    first: fx.Node
    second: fx.Node
    groups: int
    block: int


def equalize(graph_module: fx.GraphModule) -> None:
    """Equalize the channels of all pairs of layers, in place, on a captured, folded, normalized graph.

    The graph computes the same function, to float32's accuracy. Layers in a row (convolution, depthwise, pointwise) are
    pairs one after the other, in rounds until nothing moves any more, as in section 4.1.2. A layer whose parameters
    another one reads as well is left alone, and so is a channel that is all zero on either side.
    """
    found = list(pairs(graph_module.graph))
    for _ in range(ROUNDS):
        moved = [_equalize(graph_module, pair) for pair in found]
        if max(moved, default=0.0) < CONVERGED:
            break


def pairs(graph: fx.Graph) -> Iterator[Pair]:
    """The pairs that can be equalized, in the order of the graph."""
    for node in graph.nodes:
        if not is_operator(node, *_WEIGHTED) or not _owns_parameters(node):
            continue
        reader, block = _reader(node)
        if reader is None or not _owns_parameters(reader):
            continue
        groups = 1 if is_operator(reader, "aten.linear") else int(argument(reader, 6, "groups", 1))
        yield Pair(node, reader, groups, block)


def _owns_parameters(layer: fx.Node) -> bool:
    """Whether the layer's weight and bias are stored, and no other layer reads them, through whichever node."""
    weight, bias = argument(layer, 1, "weight"), argument(layer, 2, "bias")
    parameters = [weight] if bias is None else [weight, bias]
    if not all(stored(node) for node in parameters):
        return False
    targets = {node.target for node in parameters}
    readers = {user for node in layer.graph.nodes if stored(node) and node.target in targets for user in node.users}
    return readers == {layer}


def _reader(layer: fx.Node) -> tuple[fx.Node | None, int]:
    """The layer that alone reads what ``layer`` computes, and how many of its inputs each output channel becomes."""
    node, block = layer, 1
    channels_last = is_operator(layer, "aten.linear")
    while len(node.users) == 1:
        user = next(iter(node.users))
        if is_operator(user, *_WEIGHTED):
            reads = user.args[0] is node and is_operator(user, "aten.linear") == channels_last
            return (user, block) if reads else (None, 0)
        if is_operator(user, *_RESHAPES):
            before, after = shape_of(node), shape_of(user)
            if channels_last:
                if before[-1] != after[-1]:
                    break
            elif len(after) == 2 and after[1] == math.prod(before[1:]):  # [N, C, *spatial] -> [N, C * prod(spatial)]
                block, channels_last = math.prod(before[2:]), True
            else:
                break
        elif not is_operator(user, *(_ELEMENTWISE if channels_last else _ELEMENTWISE + _POOLING)):
            break
        node = user
    return None, 0


def _equalize(graph_module: fx.GraphModule, pair: Pair) -> float:
    """Apply eq. 11 to one pair; returns the largest change of a factor's logarithm."""
    first, second = (_parameter(graph_module, layer, 1, "weight") for layer in (pair.first, pair.second))
    assert first is not None
    assert second is not None
    grouped = second.reshape(pair.groups, len(second) // pair.groups, -1, second[0, 0].numel() * pair.block)
    ranges = first.abs().flatten(1).amax(1).double(), grouped.abs().amax((1, 3)).flatten().double()
    alive = (ranges[0] > 0) & (ranges[1] > 0)
    factors = torch.where(alive, torch.sqrt(ranges[0] / ranges[1]), 1.0)  # s_i = sqrt(r1 r2) / r2, eq. 11
    first.copy_(first / factors.reshape(-1, *[1] * (first.dim() - 1)))
    bias = _parameter(graph_module, pair.first, 2, "bias")
    if bias is not None:
        bias.copy_(bias / factors)
    second.copy_((grouped * factors.reshape(pair.groups, 1, -1, 1)).reshape(second.shape))
    return float(factors.log().abs().max()) if len(factors) else 0.0


def _parameter(graph_module: fx.GraphModule, layer: fx.Node, index: int, name: str) -> Tensor | None:
    node = argument(layer, index, name)
    return None if node is None else tensor_at(graph_module, str(node.target)).detach()
