"""Cross-layer equalization: the same function, ranges that match, and layers that must be left alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from qdeploy.quant.equalize import equalize, pairs
from tests.networks import Net, conv, conv1d, graph_of, outputs_of, samples

IMAGES = samples(4, 8, 8, 8)


def linears(*sizes: int) -> nn.Sequential:
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))


def uneven(net: nn.Module, seed: int = 0) -> nn.Module:
    """Output channels whose weights differ by factors of up to 10,000."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            factors = 10.0 ** torch.empty(len(module.weight)).uniform_(-2, 2, generator=generator)
            module.weight.data.normal_(0, 0.2, generator=generator)
            module.weight.data *= factors.reshape(-1, *[1] * (module.weight.dim() - 1))
            if module.bias is not None:
                module.bias.data.normal_(0, 0.2, generator=generator)
    return net.eval()


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """To float32's accuracy, in sums of terms of the size of the largest output."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


EQUALIZED = {
    "relu": (nn.Sequential(conv(), nn.ReLU(), conv()), IMAGES, 1),
    "no activation": (nn.Sequential(conv(bias=False), conv()), IMAGES, 1),
    "depthwise": (nn.Sequential(conv(8, 16, 1), nn.ReLU(), conv(16, 16, groups=16), nn.ReLU(), conv(16, 4)), IMAGES, 2),
    "grouped": (nn.Sequential(conv(8, 16), nn.LeakyReLU(), conv(16, 8, groups=4)), IMAGES, 1),
    "flattened": (nn.Sequential(conv(8, 6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 5)), IMAGES, 1),
    "pooled": (nn.Sequential(conv(8, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)), IMAGES, 1),
    "linear": (linears(8, 12, 6), samples(4, 8), 1),
    "linear on sequences": (linears(8, 12, 6), samples(4, 5, 8), 1),
    "one axis": (nn.Sequential(conv1d(), nn.ReLU(), conv1d(), nn.Flatten(), nn.Linear(128, 3)), samples(4, 8, 16), 2),
}


@pytest.mark.parametrize(("net", "x", "count"), EQUALIZED.values(), ids=EQUALIZED)
def test_the_function_stays_and_ranges_match(net, x, count):
    graph = graph_of(uneven(net), x)
    assert len(list(pairs(graph.graph))) == count
    before = outputs_of(graph, x)[0]
    equalize(graph)
    assert_same(outputs_of(graph, x)[0], before)
    for pair in pairs(graph.graph):
        first, second = (graph.get_parameter(node.args[1].target).detach() for node in (pair.first, pair.second))
        grouped = second.reshape(pair.groups, len(second) // pair.groups, len(first) // pair.groups, -1)
        torch.testing.assert_close(
            first.abs().flatten(1).amax(1), grouped.abs().amax((1, 3)).flatten(), rtol=0.01, atol=0
        )


SHARED = conv()
LEFT_ALONE = {
    "two readers": Net(lambda m, x: m.b(m.a(x)) + m.c(m.a(x)), a=conv(), b=conv(), c=conv()),
    "residual": Net(lambda m, x: m.b(m.a(x)) + x, a=SHARED, b=SHARED),
    "relu6": nn.Sequential(conv(), nn.ReLU6(), conv()),
    "sigmoid": nn.Sequential(conv(), nn.Sigmoid(), conv()),
    "returned": Net(lambda m, x: (m.a(x), x), a=conv()),
    "rows of a flattened batch": Net(lambda m, x: m.b(m.a(x).reshape(-1, 64)), a=conv(), b=nn.Linear(64, 3)),
    "linear on width": Net(lambda m, x: m.b(m.a(x)), a=conv(), b=nn.Linear(8, 3)),
}


@pytest.mark.parametrize("net", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_what_a_factor_would_change_is_left_alone(net):
    graph = graph_of(net.eval(), IMAGES)
    before = {name: parameter.clone() for name, parameter in graph.named_parameters()}
    equalize(graph)
    after = dict(graph.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_dead_channels_keep_their_weights():
    net = uneven(nn.Sequential(conv(), nn.ReLU(), conv()))
    net[0].weight.data[2] = 0.0
    net[2].weight.data[:, 5] = 0.0
    graph = graph_of(net, IMAGES)
    before = outputs_of(graph, IMAGES)[0]
    equalize(graph)
    weights = [graph.get_parameter(f"{name}.weight") for name in "02"]
    assert all(torch.isfinite(weight).all() for weight in weights)
    torch.testing.assert_close(weights[0][5], net[0].weight[5])
    torch.testing.assert_close(weights[1][:, 2], net[2].weight[:, 2])
    assert_same(outputs_of(graph, IMAGES)[0], before)


def test_per_tensor_ranges_shrink():
    """What it is for: one range for all channels wastes less on the channels that were small."""
    net = uneven(nn.Sequential(conv(), nn.ReLU(), conv()))
    graph = graph_of(net, IMAGES)

    def waste() -> float:
        reach = graph.get_parameter("0.weight").detach().abs().flatten(1).amax(1)
        return float(reach.max() / reach.median())

    before = waste()
    equalize(graph)
    assert waste() < before / 3
