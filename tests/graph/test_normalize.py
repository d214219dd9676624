"""Normalization: one form for equal things, and the same function."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qdeploy.graph import moves
from qdeploy.quant.fusion_table import TABLE, Role
from tests.networks import Net, conv, graph_of, layer_names, operators, outputs_of, samples

IMAGES, SEQUENCES, VECTORS = samples(4, 8, 12, 6), samples(4, 10, 16), samples(6, 16)


def normalized(run, example: torch.Tensor = IMAGES, **layers) -> list[str]:
    """The operators that are left, after checking the function on two batch sizes."""
    model = Net(run, **layers).eval()
    graph = graph_of(model, example)
    for x in (example, example[:1]):
        for found, expected in zip(outputs_of(graph, x), outputs_of(model, x), strict=True):
            assert found.shape == expected.shape
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    return operators(graph)


# ------------------------------------------------------------------------------------------------------------ pooling


@pytest.mark.parametrize(
    ("run", "left"),
    [
        (lambda m, x: x.mean((2, 3)), ["adaptive_avg_pool2d", "flatten"]),
        (lambda m, x: x.mean((3, 2)), ["adaptive_avg_pool2d", "flatten"]),
        (lambda m, x: x.mean([-1, -2]), ["adaptive_avg_pool2d", "flatten"]),
        (lambda m, x: x.mean((2, 3), keepdim=True), ["adaptive_avg_pool2d"]),
        (lambda m, x: x.mean(3).mean(2), ["adaptive_avg_pool2d", "flatten"]),
        (lambda m, x: x.mean(2).mean(2), ["adaptive_avg_pool2d", "flatten"]),
        (lambda m, x: x.mean(2, keepdim=True).mean(3, keepdim=True), ["adaptive_avg_pool2d"]),
        (lambda m, x: F.adaptive_avg_pool2d(x, 1), ["adaptive_avg_pool2d"]),
        (lambda m, x: F.adaptive_avg_pool2d(x, (1, 1)).flatten(1), ["adaptive_avg_pool2d", "flatten"]),
        (lambda m, x: F.adaptive_avg_pool2d(x, (4, 2)), ["avg_pool2d"]),
        (lambda m, x: F.adaptive_avg_pool2d(x, (None, 3)), ["avg_pool2d"]),
        (lambda m, x: F.adaptive_avg_pool2d(x, (12, 6)), []),
        (lambda m, x: F.adaptive_avg_pool2d(x, 5), ["adaptive_avg_pool2d"]),
        (lambda m, x: x.amax((2, 3)), ["max_pool2d", "flatten"]),
        (lambda m, x: x.amax((-1, -2), keepdim=True), ["max_pool2d"]),
        (lambda m, x: F.adaptive_max_pool2d(x, (4, 2)), ["max_pool2d"]),
        (lambda m, x: F.adaptive_max_pool2d(x, 1), ["max_pool2d"]),
        # Not over height and width.
        (lambda m, x: x.mean((1, 2)), ["mean"]),
        (lambda m, x: x.mean(), ["mean"]),
        (lambda m, x: x.mean(3), ["mean"]),
        (lambda m, x: x.mean(1).mean(2), ["mean"]),
        (lambda m, x: x.amax(1), ["amax"]),
        (lambda m, x: (lambda r: r + r.mean(2, keepdim=True))(x.mean(3, keepdim=True)), ["mean", "mean", "add"]),
        (lambda m, x: x.mean(2).mean(2, keepdim=True), ["mean", "adaptive_avg_pool1d"]),
        (lambda m, x: F.adaptive_max_pool2d(x, 5), ["adaptive_max_pool2d"]),
        (lambda m, x: F.adaptive_max_pool2d(x, 1, return_indices=True)[1].float(), ["adaptive_max_pool2d", "to"]),
    ],
)
def test_pooling(run, left):
    assert normalized(run) == left


@pytest.mark.parametrize(
    ("run", "left"),
    [
        (lambda m, x: x.mean(-1), ["adaptive_avg_pool1d", "flatten"]),
        (lambda m, x: x.mean(2, keepdim=True), ["adaptive_avg_pool1d"]),
        (lambda m, x: F.adaptive_avg_pool1d(x, 4), ["avg_pool1d"]),
        (lambda m, x: F.adaptive_avg_pool1d(x, 16), []),
        (lambda m, x: x.amax(-1), ["max_pool1d", "flatten"]),
        (lambda m, x: F.adaptive_max_pool1d(x, 8), ["max_pool1d"]),
        (lambda m, x: x.mean(1), ["mean"]),
    ],
)
def test_pooling_of_sequences(run, left):
    assert normalized(run, SEQUENCES) == left


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 3, 1), ((3, 2), (2, 1), (1, 0))])
def test_average_pooling_counts_padding_only_where_a_kernel_gets_it_right(
    ceil_mode, count_include_pad, kernel, stride, padding
):
    left = normalized(
        lambda m, x: F.avg_pool2d(x, kernel, stride, padding, ceil_mode, count_include_pad), samples(4, 3, 11, 8)
    )
    made_real = ceil_mode and count_include_pad and padding != 0
    assert [name for name in left if name != "slice"] == (["pad", "avg_pool2d"] if made_real else ["avg_pool2d"])


# ----------------------------------------------------------------------------------------------------- linear layers


@pytest.mark.parametrize("shape", [(4, 10, 16), (4, 3, 5, 16), (4, 2, 3, 5, 16)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_on_many_dimensions_lies_between_reshapes(shape, bias):
    left = normalized(lambda m, x: m.a(x), samples(*shape), a=nn.Linear(16, 5, bias=bias))
    assert left == ["reshape", "linear", "reshape"]


@pytest.mark.parametrize("axes", [(0, -2), (0, 1), (-1, 0), (1, -1)])
def test_a_product_with_a_stored_matrix_however_it_is_turned(axes):
    """(0, -2) and (1, -1) are one axis twice: nothing is turned."""
    normalized(lambda m, x: x @ m.a.weight.transpose(*axes), VECTORS, a=nn.Linear(16, 16))


def test_a_linear_layer_on_two_dimensions_stays():
    assert normalized(lambda m, x: m.a(x), VECTORS, a=nn.Linear(16, 5)) == ["linear"]


def test_names_around_a_flattened_linear_layer():
    graph = graph_of(nn.Sequential(nn.Linear(16, 5)), SEQUENCES)
    assert layer_names(graph) == ["input", "0.flatten", "0", "0.unflatten"]


# -------------------------------------------------------------------------------------------------------------- moves


@pytest.mark.parametrize(
    ("run", "left"),
    [
        (lambda m, x: x.view(x.size(0), -1), ["reshape"]),
        (lambda m, x: x.reshape(x.size(0), 4, -1, 6), ["reshape"]),
        (lambda m, x: x.reshape(-1, 4, 12, 6), ["reshape"]),
        (lambda m, x: x.unflatten(1, (2, 4)), ["reshape"]),
        (lambda m, x: F.channel_shuffle(x, 2), ["reshape", "transpose", "reshape"]),
        (lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1), ["slice", "slice", "cat"]),
        (lambda m, x: torch.cat(x.split((1, 7), dim=1), 1), ["slice", "slice", "cat"]),
        (lambda m, x: x.split(3, dim=-1)[1], ["slice"]),
        (lambda m, x: F.interpolate(x, scale_factor=3), ["upsample_nearest2d"]),
        (lambda m, x: F.interpolate(x, size=(24, 6)), ["upsample_nearest2d"]),
        (lambda m, x: F.interpolate(x, size=(17, 5)), ["index_select", "index_select"]),
        (lambda m, x: F.interpolate(x, scale_factor=1.7), ["index_select", "index_select"]),
        (lambda m, x: F.interpolate(x, scale_factor=(0.5, 2.0)), ["index_select", "index_select"]),
    ],
)
def test_moves(run, left):
    assert normalized(run) == left


def test_a_shape_of_two_unknown_sizes_is_read_from_the_input():
    model = Net(lambda m, x: x.reshape(x.size(0), -1, 8)[:, :, :4]).eval()
    graph = graph_of(model, IMAGES)
    torch.testing.assert_close(graph(IMAGES[:3]), model(IMAGES[:3]))


@pytest.mark.parametrize(
    ("run", "left"),
    [
        (lambda m, x: F.max_pool2d(m.a(x), 2).relu(), ["conv2d", "relu", "max_pool2d"]),
        (lambda m, x: F.relu6(F.max_pool2d(m.a(x), 2).flatten(1)), ["conv2d", "relu6", "max_pool2d", "flatten"]),
        (lambda m, x: m.a(x)[:, 2:4].clamp(-1, 1), ["conv2d", "clamp", "slice"]),
        (lambda m, x: F.hardtanh(m.a(x).transpose(1, 2)), ["conv2d", "hardtanh", "transpose"]),
        # Somebody else reads the value before the move, or behind it, or it is no move at all.
        (lambda m, x: (lambda h: F.max_pool2d(h, 1).relu() + h)(m.a(x)), ["conv2d", "max_pool2d", "relu", "add"]),
        (lambda m, x: (lambda h: h.relu() + h)(m.a(x).flatten(1)), ["conv2d", "flatten", "relu", "add"]),
        (lambda m, x: F.avg_pool2d(m.a(x), 2).relu(), ["conv2d", "avg_pool2d", "relu"]),
        (lambda m, x: F.pad(m.a(x), (1, 1), value=-1.0).relu(), ["conv2d", "pad", "relu"]),
        (lambda m, x: m.a(x).flatten(1).clamp(m.low), ["conv2d", "flatten", "clamp"]),
    ],
)
def test_a_clip_stands_before_what_only_moves_values(run, left):
    assert normalized(run, a=conv(), low=nn.Parameter(torch.tensor(0.1))) == left


def test_the_lists_of_moves_and_clips_agree_with_the_fusion_table():
    rows = {role: {row.aten for row in TABLE if row.role is role} for role in Role}
    assert set(moves._CLIPS) == rows[Role.CLIP]
    # Padding with zeros does not commute with every clip.
    assert set(moves._MOVES) == rows[Role.MOVE] - {"aten.pad"}
