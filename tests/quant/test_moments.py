"""Columns and their moments against brute force, and what can be read from the moments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from qdeploy.core.errors import QDeployError
from qdeploy.quant.moments import Moments, MomentSums, columns, count_columns
from tests.networks import conv, conv1d, graph_of, samples

LAYERS = {
    "3x3": (conv(6, 4), samples(3, 6, 7, 9)),
    "strided, no padding": (nn.Conv2d(6, 4, (3, 2), stride=(2, 1)), samples(3, 6, 8, 7)),
    "dilated": (nn.Conv2d(6, 4, 3, dilation=(1, 2), padding=(2, 1)), samples(3, 6, 8, 9)),
    "same": (nn.Conv2d(6, 4, (2, 3), padding="same"), samples(3, 6, 8, 9)),
    "valid": (nn.Conv2d(6, 4, 2, padding="valid"), samples(3, 6, 4, 5)),
    "grouped": (conv(6, 4, groups=2), samples(3, 6, 5, 5)),
    "depthwise": (conv(6, 12, groups=6), samples(3, 6, 5, 5)),
    "pointwise": (conv(6, 4, 1), samples(3, 6, 5, 5)),
    "one axis": (conv1d(6, 4, stride=2), samples(3, 6, 11)),
    "linear": (nn.Linear(6, 4), samples(5, 6)),
    "linear on sequences": (nn.Linear(6, 4), samples(3, 7, 6)),
}
LINEAR = nn.Linear(6, 4)


def node_of(layer: nn.Module, x: torch.Tensor):
    graph = graph_of(nn.Sequential(layer).eval(), x)
    (node,) = (n for n in graph.graph.nodes if str(n.target).startswith(("aten.conv", "aten.linear")))
    return node


def moments_of(x: np.ndarray, x_hat: np.ndarray) -> Moments:
    """Of columns [S, K] of one group."""
    n = len(x)
    return Moments((x_hat.T @ x_hat / n)[None], (x.T @ x_hat / n)[None], x.mean(0)[None], x_hat.mean(0)[None])


@pytest.mark.parametrize(("layer", "x"), LAYERS.values(), ids=LAYERS)
def test_weights_times_columns_are_the_layers_outputs(layer, x):
    node = node_of(layer, x)
    found = columns(node, x)
    assert len(found) == count_columns(node, x)
    weight = layer.weight.detach().reshape(found.shape[1], -1, found.shape[2])
    outputs = torch.einsum("sgk,grk->sgr", found, weight).flatten(1) + layer.bias.detach()
    expected = layer(x).detach()
    expected = expected if isinstance(layer, nn.Linear) else expected.movedim(1, -1)
    torch.testing.assert_close(outputs, expected.reshape(outputs.shape), rtol=1e-4, atol=1e-5)
    picks = torch.tensor([4, 0, 4, len(found) - 1])
    torch.testing.assert_close(columns(node, x, picks), found[picks], rtol=0, atol=0)


@pytest.mark.parametrize(("layer", "x"), LAYERS.values(), ids=LAYERS)
def test_moments_are_those_of_all_columns(layer, x):
    node, x_hat = node_of(layer, x), x + 0.3 * samples(*x.shape, seed=1)
    sums = MomentSums(node)
    for a, b in zip(x.split(2), x_hat.split(2), strict=True):
        sums.update(a, b, share=len(a) / len(x))
    found = sums.result()
    a, b = (columns(node, value).double() for value in (x, x_hat))
    n = len(a)
    np.testing.assert_allclose(found.second, torch.einsum("sgk,sgl->gkl", b, b) / n, atol=1e-5)
    np.testing.assert_allclose(found.cross, torch.einsum("sgk,sgl->gkl", a, b) / n, atol=1e-5)
    np.testing.assert_allclose(found.mean, a.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.mean_hat, b.mean(0), atol=1e-6)


def test_a_part_of_the_columns_stands_for_all():
    node, x = node_of(conv(4, 4), samples(2, 4, 8, 8)), samples(40, 4, 16, 16)
    every, part, again = MomentSums(node, seed=1), *(MomentSums(node, seed=1, most=2000) for _ in range(2))
    every.update(x, x)
    for sums in (part, again):
        for batch in x.split(10):
            sums.update(batch, batch, share=0.25)
    assert part.count == 2000
    assert every.count == 40 * 16 * 16
    np.testing.assert_array_equal(part.result().second, again.result().second)
    np.testing.assert_allclose(part.result().second, every.result().second, atol=0.15)
    np.testing.assert_array_equal(part.result().second, part.result().cross)  # the same columns of both graphs


def test_the_target_gives_the_float_output_back():
    """With enough data, W* x_hat is the best prediction of W x; with no damping its error is that of least squares."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 6))
    x_hat = x @ (np.eye(6) + 0.2 * rng.standard_normal((6, 6))) + 0.1 * rng.standard_normal((400, 6))
    w = rng.standard_normal((3, 6)).astype(np.float32)
    found = moments_of(x, x_hat)
    least_squares = np.linalg.lstsq(x_hat, x @ w.T, rcond=None)[0].T
    np.testing.assert_allclose(found.target(w, 1e-9), least_squares, atol=1e-4)

    def error(v):
        return np.square(x @ w.T - x_hat @ v.T).sum()

    assert error(found.target(w, 0.01)) < 0.5 * error(w)
    np.testing.assert_allclose(found.target(w, 1e9), w, atol=1e-5)
    np.testing.assert_allclose(moments_of(x, x).target(w, 0.01), w, atol=1e-5)


def test_centred_moments_are_covariances():
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((500, 4)) + 3, rng.standard_normal((500, 4))
    found = moments_of(x, x + noise).centred()
    joint = np.cov(x.T, (x + noise).T, bias=True)
    np.testing.assert_allclose(found.second[0], joint[4:, 4:], atol=1e-9)
    np.testing.assert_allclose(found.cross[0], joint[:4, 4:], atol=1e-9)


def test_dead_inputs_have_a_target():
    x = np.random.default_rng(0).standard_normal((50, 4))
    x[:, 2] = 0.0
    w = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(moments_of(x, x).target(w, 0.01), w, rtol=1e-5)
    np.testing.assert_array_equal(moments_of(0 * x, 0 * x).target(w, 0.01), w)


def test_nothing_and_what_is_not_a_number_are_refused():
    node = node_of(LINEAR, samples(5, 6))
    with pytest.raises(QDeployError, match="no calibration samples"):
        MomentSums(node).result()
    bad = samples(5, 6)
    bad[1, 2], bad[3, :2] = torch.nan, torch.inf
    with pytest.raises(QDeployError, match="1 NaN and 2 infinite values"):
        MomentSums(node).update(samples(5, 6), bad)
    with pytest.raises(QDeployError, match="leaves float32"):
        MomentSums(node).update(samples(5, 6) * 1e30, samples(5, 6) * 1e30)
