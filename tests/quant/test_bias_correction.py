"""Bias correction: the mean output of a layer is again what it was, and the graph gets the bias that says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from qdeploy.quant.bias_correction import correction, shift_bias
from qdeploy.quant.moments import MomentSums
from tests.networks import conv, graph_of, samples

X, X_HAT = samples(6, 8, 7, 7), samples(6, 8, 7, 7) + 0.2 * samples(6, 8, 7, 7, seed=1) + 0.1


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_the_corrected_layer_has_the_same_mean(groups):
    layer = conv(8, 16, groups=groups, stride=2)
    graph = graph_of(nn.Sequential(layer).eval(), X)
    (node,) = (n for n in graph.graph.nodes if str(n.target).startswith("aten.conv"))
    sums = MomentSums(node)
    sums.update(X, X_HAT)
    weight = layer.weight.detach()
    quantized = torch.round(weight * 10) / 10
    shift = correction(weight.numpy(), quantized.numpy(), sums.result())
    assert shift.dtype == np.float32
    with torch.no_grad():
        before = layer(X).mean((0, 2, 3))
        layer.weight.copy_(quantized)
        after = layer(X_HAT).mean((0, 2, 3)) + torch.from_numpy(shift)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


LAYERS = {
    "with a bias": (conv(), X),
    "without": (conv(bias=False, stride=2, padding=0), X),
    "linear": (nn.Linear(7, 8), X),
    "linear without": (nn.Linear(7, 8, bias=False), X),
}


@pytest.mark.parametrize(("layer", "x"), LAYERS.values(), ids=LAYERS)
def test_shifting_a_bias_shifts_the_output(layer, x):
    graph = graph_of(nn.Sequential(layer).eval(), x)
    (node,) = (n for n in graph.graph.nodes if str(n.target).startswith(("aten.conv", "aten.linear")))
    shift = np.arange(8, dtype=np.float32)
    with torch.no_grad():
        before = graph(x)
        shift_bias(graph, node, shift)
        graph.graph.lint()
        graph.recompile()
        axis = -1 if isinstance(layer, nn.Linear) else 1
        expected = before.movedim(axis, -1) + torch.from_numpy(shift)
        torch.testing.assert_close(graph(x), expected.movedim(-1, axis))
        torch.testing.assert_close(layer(x), before)  # the model itself is as it was


def test_a_shared_bias_stays_the_other_layers():
    net = nn.Sequential(conv(), conv()).eval()
    net[1].bias = net[0].bias
    graph = graph_of(net, X)
    first, second = (n for n in graph.graph.nodes if str(n.target).startswith("aten.conv"))
    shift_bias(graph, first, np.ones(8, np.float32))
    graph.recompile()
    found, kept = (graph.get_parameter(node.args[2].target).detach() for node in (first, second))
    torch.testing.assert_close(kept, net[0].bias.detach())
    torch.testing.assert_close(found, kept + 1)
