"""Folding: the same function with fewer operators, in every arrangement that models have."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from qdeploy.graph.capture import capture
from qdeploy.graph.fold import fold
from tests.networks import Net, conv, conv1d, label, layer_names, operators, outputs_of, randomise, samples

IMAGES, SEQUENCES, VECTORS = samples(4, 8, 6, 6), samples(4, 8, 10), samples(6, 16)


def folded(model: nn.Module, example: torch.Tensor = IMAGES) -> list[str]:
    """The operators that are left, after checking that the function is the same."""
    randomise(model)
    graph = capture(model, example)
    fold(graph)
    for found, expected in zip(outputs_of(graph, example), outputs_of(model, example), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    return operators(graph)


# -------------------------------------------------------------------------------------------------------- batch norm


@pytest.mark.parametrize(
    ("model", "example", "left"),
    [
        (nn.Sequential(conv(), nn.BatchNorm2d(8)), IMAGES, ["conv2d"]),
        (nn.Sequential(conv(bias=False), nn.BatchNorm2d(8)), IMAGES, ["conv2d"]),
        (nn.Sequential(conv(groups=4), nn.BatchNorm2d(8)), IMAGES, ["conv2d"]),
        (nn.Sequential(conv(padding="same"), nn.BatchNorm2d(8)), IMAGES, ["conv2d"]),
        (nn.Sequential(conv1d(), nn.BatchNorm1d(8)), SEQUENCES, ["conv1d"]),
        (nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8)), VECTORS, ["linear"]),
        (nn.Sequential(nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8)), VECTORS, ["linear"]),
        (nn.Sequential(nn.ConvTranspose2d(8, 6, 2, 2), nn.BatchNorm2d(6)), IMAGES, ["conv_transpose2d"]),
        (nn.Sequential(conv(), nn.BatchNorm2d(8, affine=False)), IMAGES, ["conv2d"]),
        (nn.Sequential(conv(), nn.BatchNorm2d(8), nn.BatchNorm2d(8)), IMAGES, ["conv2d"]),
        (nn.Sequential(conv(), nn.Dropout2d(), nn.BatchNorm2d(8)), IMAGES, ["conv2d"]),
        (nn.Sequential(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4)), samples(2, 2, 4, 4, 4), ["conv3d"]),
    ],
    ids=label,
)
def test_batch_norm_goes_into_the_layer_before_it(model, example, left):
    assert folded(model, example) == left


@pytest.mark.parametrize(
    ("model", "example", "left"),
    [
        (nn.BatchNorm2d(8), IMAGES, ["conv2d"]),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8)), IMAGES, ["relu", "conv2d"]),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(8)), SEQUENCES, ["relu", "conv1d"]),
        (Net(lambda m, x: m.n(torch.cat([x, x], 1)), n=nn.BatchNorm2d(16)), IMAGES, ["cat", "conv2d"]),
        # Its layer is read by another one as well.
        (Net(lambda m, x: (lambda h: m.n(h) + h)(m.a(x)), a=conv(), n=nn.BatchNorm2d(8)), IMAGES,
         ["conv2d", "conv2d", "add"]),
        # A transposed convolution with groups has its output channels in two axes of its weight.
        (nn.Sequential(nn.ConvTranspose2d(8, 4, 2, groups=2), nn.BatchNorm2d(4)), IMAGES,
         ["conv_transpose2d", "conv2d"]),
        # On [N, 8, 10] a linear layer's channels are the 10, batch norm's the 8.
        (nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(8)), SEQUENCES, ["linear", "conv1d"]),
        (nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8)), SEQUENCES, ["linear", "conv1d"]),
    ],
    ids=label,
)  # fmt: skip
def test_batch_norm_that_stands_alone_is_a_depthwise_convolution(model, example, left):
    assert folded(model, example) == left


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (nn.Sequential(conv(), nn.BatchNorm2d(8, track_running_stats=False)), IMAGES),  # statistics of the batch
        (nn.BatchNorm1d(16), VECTORS),
    ],
    ids=label,
)
def test_batch_norm_that_cannot_be_folded_stays(model, example):
    assert folded(model, example)[-1] == "batch_norm"


def test_negative_and_zero_gains():
    model = nn.Sequential(conv(), nn.BatchNorm2d(8))
    randomise(model)
    model[1].weight.data[:4] = torch.tensor([-1.0, 0.0, -0.3, 1e-20])
    graph = capture(model, IMAGES)
    fold(graph)
    torch.testing.assert_close(graph(IMAGES), model(IMAGES))


# ----------------------------------------------------------------------------------------------------- shared weights


def test_a_shared_convolution_with_a_batch_norm_a_call():
    """Each call gets weights of its own: folding into one must not show in the other."""
    model = Net(lambda m, x: m.n2(m.a(m.n1(m.a(x)).relu())), a=conv(), n1=nn.BatchNorm2d(8), n2=nn.BatchNorm2d(8))
    randomise(model)
    model.n2.weight.data *= 5
    assert folded(model) == ["conv2d", "relu", "conv2d"]


def test_a_shared_convolution_of_which_one_call_is_normalized():
    for run in (lambda m, x: m.a(m.n(m.a(x))), lambda m, x: m.n(m.a(m.a(x))), lambda m, x: m.n(m.a(x)) + m.a(x)):
        assert "batch_norm" not in folded(Net(run, a=conv(), n=nn.BatchNorm2d(8)))


def test_tied_weights_of_two_layers():
    model = nn.Sequential(conv(bias=False), nn.BatchNorm2d(8), conv(bias=False))
    model[2].weight = model[0].weight
    assert folded(model) == ["conv2d", "conv2d"]


def test_a_made_up_layer_name_does_not_overwrite_a_modules_weights():
    model = Net(lambda m, x: m.n(m.a_1(m.n(m.a(m.a(x))))), a=conv(), a_1=conv(), n=nn.BatchNorm2d(8))
    assert folded(model) == ["conv2d"] * 3


# ------------------------------------------------------------------------------------- sums and products with numbers


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m.a(x) + 1,
        lambda m, x: m.a(x) - 0.5,
        lambda m, x: m.a(x) * 3.0,
        lambda m, x: m.a(x) / 4,
        lambda m, x: (m.a(x) - 0.5) / 0.25,
        lambda m, x: m.a(x) + m.channels,
        lambda m, x: m.a(x) * m.channels,
        lambda m, x: m.n(m.a(x) * m.channels - m.one),
        lambda m, x: torch.add(m.a(x), m.channels, alpha=0.3),
        lambda m, x: F.conv2d(x, m.a.weight) * m.channels,
    ],
)
def test_a_number_or_a_value_a_channel_goes_into_the_layer(run):
    channels, one = nn.Parameter(samples(8, 1, 1)), nn.Parameter(samples(1))
    assert folded(Net(run, a=conv(), n=nn.BatchNorm2d(8), channels=channels, one=one)) == ["conv2d"]


def test_on_the_last_axis_of_a_linear_layer():
    assert folded(Net(lambda m, x: m.a(x) * m.g + 1, a=nn.Linear(10, 6), g=nn.Parameter(samples(6))), SEQUENCES) == [
        "linear"
    ]


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m.a(x) * m.map,  # another value at every place
        lambda m, x: m.a(x) + m.columns,  # along another axis than the channels
        lambda m, x: 1 - m.a(x),
        lambda m, x: torch.div(m.a(x), 2, rounding_mode="floor"),
        lambda m, x: (lambda h: h * 2 + h)(m.a(x)),  # the layer is read by another as well
        lambda m, x: m.a(x) + m.wide,  # the sum is larger than the layer's output
    ],
)
def test_anything_else_stays(run):
    model = Net(
        run, a=conv(), map=nn.Parameter(samples(8, 6, 6)), columns=nn.Parameter(samples(6)),
        wide=nn.Parameter(samples(2, 1, 8, 1, 1)),
    )  # fmt: skip
    assert len(folded(model)) > 1


# ---------------------------------------------------------------------------------------------- identities, constants


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m.i(F.dropout(m.a(x), training=False)),
        lambda m, x: m.a(x).contiguous().clone().detach(),
        lambda m, x: sum([m.a(x)]),
        lambda m, x: m.a(x) * 1 - 0,
        lambda m, x: m.a(x.float()).to(torch.float32).type_as(x),
        lambda m, x: m.a(x)[:, :, :],
    ],
)
def test_what_does_nothing_goes(run):
    assert folded(Net(run, a=conv(), i=nn.Identity())) == ["conv2d"]


@pytest.mark.parametrize(
    "run", [lambda m, x: x[:, :, 1:], lambda m, x: x * 2, lambda m, x: x + x, lambda m, x: x.double().float()]
)
def test_what_does_something_stays(run):
    assert folded(Net(run))


def pruned() -> nn.Module:
    layer = conv()
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(parametrizations.weight_norm(conv()), nn.BatchNorm2d(8)),
        nn.Sequential(parametrizations.spectral_norm(conv()), nn.BatchNorm2d(8)),
        nn.Sequential(pruned(), nn.BatchNorm2d(8)),
        Net(lambda m, x: F.conv2d(x, m.w * m.mask), w=nn.Parameter(samples(8, 8, 3, 3)), mask=torch.ones(8, 1, 3, 3)),
        Net(lambda m, x: F.conv2d(x, m.w - m.w.mean((1, 2, 3), keepdim=True)), w=nn.Parameter(samples(8, 8, 3, 3))),
    ],
)  # fmt: skip
def test_a_weight_computed_from_stored_tensors_is_computed_once(model):
    assert folded(model) == ["conv2d"]


def test_a_constant_larger_than_what_it_is_made_from_stays_computed():
    model = Net(lambda m, x: x + m.row * m.column, row=nn.Parameter(samples(1, 6)), column=nn.Parameter(samples(6, 1)))
    assert folded(model) == ["mul", "add"]


def test_products_with_a_stored_matrix_are_linear_layers():
    matrix, bias = nn.Parameter(samples(16, 8)), nn.Parameter(samples(8))
    runs = (
        lambda m, x: x @ m.w,
        lambda m, x: x @ m.w + m.b,
        lambda m, x: torch.mm(x, m.w),
        lambda m, x: torch.addmm(m.b, x, m.w),
        lambda m, x: F.linear(x, m.w.t(), m.b),
    )
    for run in runs:
        assert folded(Net(run, w=matrix, b=bias), VECTORS) == ["linear"]
    assert folded(Net(lambda m, x: torch.addmm(m.b, x, m.w, alpha=2), w=matrix, b=bias), VECTORS) == ["addmm"]
    assert folded(Net(lambda m, x: x @ x.t()), VECTORS) == ["t", "matmul"]


def test_names_are_those_of_the_unfolded_graph():
    model = nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8))
    graph = capture(randomise(model), IMAGES)
    fold(graph)
    assert layer_names(graph) == ["input", "0", "2", "3"]
    assert {name for name, _ in graph.named_parameters()} == {"0.weight", "0.bias", "3.weight", "3.bias"}
