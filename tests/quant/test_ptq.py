"""Layer by layer on the data: what knowing the inputs is worth, and that what ships is what was solved for."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qdeploy.core import scheme
from qdeploy.core.errors import QDeployError
from qdeploy.export.to_onnx import to_onnx
from qdeploy.quant import ptq
from qdeploy.quant.placement import Placement, place
from tests.networks import Built, Net, check, conv, graph_of, samples

BINARY = scheme.QScheme(bits=1, signed=True, codebook=(-1, 1))
FAST = {"gptq": {}, "adaround": {"iterations": 200}}


def images(count: int = 48, seed: int = 0) -> Tensor:
    """Blurred noise: neighbouring pixels and channels agree, as in photographs, which rounding can make use of."""
    x = samples(count, 8, 8, 8, seed=seed)
    mixed = torch.einsum("dc,nchw->ndhw", samples(8, 8, seed=9), x)
    return F.avg_pool2d(mixed, 3, stride=1, padding=1)


TRAIN, TEST = images(), images(seed=1)


@functools.cache
def network() -> nn.Module:
    """Residual, depthwise, pooled, linear."""
    torch.manual_seed(0)
    return Net(
        lambda m, x: m.d(m.c(m.b(m.a(x).relu()).relu() + x).relu().mean((2, 3))),
        a=conv(), b=conv(groups=8), c=conv(8, 16, 1, bias=False), d=nn.Linear(16, 10),
    ).eval()  # fmt: skip


def quantized(
    net: nn.Module, weights: scheme.QScheme, *, activations: int = 8, batches: object = None, **options: object
) -> tuple[fx.GraphModule, Placement]:
    graph = graph_of(net, TRAIN[:2])
    placement = place(graph, weight=weights)
    for quantizer in [layer.input for layer in placement.layers[1:]] if activations < 8 else []:
        quantizer.scheme = scheme.activation(activations)
    ptq.quantize(graph, placement, batches or TRAIN.split(20), **{"weight_observer": "mse", **options})
    return graph, placement


@functools.cache
def plain(rounding: str, weights: scheme.QScheme, **options: object) -> tuple[fx.GraphModule, Placement]:
    return quantized(network(), weights, rounding=rounding, rounding_options=FAST.get(rounding), **options)


@torch.no_grad()
def error(graph: nn.Module, net: nn.Module, x: Tensor = TEST) -> float:
    """The squared error of the model's output, relative to its power."""
    return float((graph(x) - net(x)).square().sum() / net(x).square().sum())


SCHEMES = {"4 bits": scheme.weight(4), "2 bits": scheme.weight(2), "1 bit": BINARY}


@pytest.mark.parametrize("weights", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("rounding", FAST)
def test_knowing_the_inputs_beats_nearest_on_unseen_data(rounding, weights):
    graph, placement = plain(rounding, weights)
    assert error(graph, network()) < 0.7 * error(plain("nearest", weights)[0], network())
    for layer in placement.layers:
        assert layer.weight.scheme.contains(layer.weight.codes.numpy())


def test_scales_judged_by_outputs_help_at_few_bits():
    few = scheme.weight(2), BINARY
    by_weights = sum(error(plain("gptq", weights)[0], network()) for weights in few)
    by_outputs = sum(error(plain("gptq", weights, weight_observer="output")[0], network()) for weights in few)
    assert by_outputs < 0.95 * by_weights


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_bias_correction_keeps_mean_outputs(rounding):
    net = network()
    before, after = (plain(rounding, scheme.weight(2), **options)[0] for options in ({}, {"bias_correction": True}))

    def shift(graph: fx.GraphModule) -> float:
        with torch.no_grad():
            return float((graph(TRAIN) - net(TRAIN)).mean(0).square().sum())

    assert shift(after) < 0.1 * shift(before)
    assert error(after, net) < error(before, net)


def test_bias_correction_gives_a_bias_to_a_layer_without_one_and_leaves_shared_ones_alone():
    net = Net(lambda m, x: m.c(m.b(m.a(x).relu()).relu()), a=conv(), b=conv(bias=False), c=conv()).eval()
    net.c.bias = net.a.bias
    graph, placement = quantized(net, scheme.weight(2), bias_correction=True)
    biases = [graph.get_submodule(f"{layer.name}.bias_quantizer")().detach() for layer in placement.layers]
    assert biases[1].abs().max() > 0
    assert not torch.allclose(biases[0], biases[2], atol=1e-4)
    assert error(graph, net) < error(quantized(net, scheme.weight(2))[0], net)


@pytest.mark.parametrize("bits", [4, 2])
def test_learned_ranges_help_the_layer_that_reads(bits):
    torch.manual_seed(0)
    net = nn.Sequential(conv(), nn.ReLU(), conv()).eval()
    errors = []
    for learn in (False, True):
        graph, placement = quantized(net, scheme.weight(8), activations=bits, learn_ranges=learn)
        errors.append(error(graph, net))
        assert int(placement.layers[1].input.zero_point) == 0  # the ReLU is still the quantizer's own clip
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("rounding", [*FAST, "nearest"])
def test_what_ships_is_what_was_solved_for(rounding):
    net = network()
    graph, placement = quantized(
        net, scheme.weight(4), rounding=rounding, rounding_options=FAST.get(rounding), bias_correction=True,
        learn_ranges=True,
    )  # fmt: skip
    check(Built(net, (TRAIN[:4],), graph, placement, to_onnx(graph, TRAIN[:4])), sqnr=10.0)


def test_the_same_data_give_the_same_codes_however_they_come():
    again = quantized(network(), scheme.weight(2), rounding="gptq", batches=(batch for batch in TRAIN.split(20)))[1]
    for a, b in zip(plain("gptq", scheme.weight(2))[1].layers, again.layers, strict=True):
        assert torch.equal(a.weight.codes, b.weight.codes)


def test_schemes_are_each_layers_own():
    graph = graph_of(network(), TRAIN[:2])
    placement = place(graph)
    for layer, bits in zip(placement.layers, (8, 4, 2, 8), strict=True):
        layer.weight.scheme = scheme.weight(bits)
    ptq.quantize(graph, placement, [TRAIN], rounding="gptq")
    reach = [int(layer.weight.codes.abs().max()) for layer in placement.layers]
    assert reach[0] > 7
    assert reach[1:3] == [7, 1]
    assert reach[3] > 7


def test_progress_names_every_layer_once():
    seen: list[str] = []
    _, placement = quantized(network(), scheme.weight(4), rounding="gptq", learn_ranges=True, progress=seen.append)
    assert seen == [layer.name for layer in placement.layers]


@pytest.mark.parametrize("bias", [1e8, -1e15])
def test_a_corrected_bias_fits_int32(bias):
    net = nn.Sequential(conv(), nn.ReLU(), conv()).eval()
    net[0].weight.data *= 1e-6
    net[0].bias.data[2] = bias
    graph, placement = quantized(net, scheme.weight(4), rounding="gptq", bias_correction=True)
    found = graph.get_submodule("0.bias_quantizer")()
    np.testing.assert_allclose(float(found[2]), bias, rtol=1e-3)
    assert len(placement.layers) == 2


def test_refusals():
    def refused(**options: object) -> str:
        with pytest.raises(QDeployError) as caught:
            quantized(network(), scheme.weight(4), **options)
        return str(caught.value)

    assert "'outptu'" in refused(weight_observer="outptu")
    assert "'output'" in refused(weight_observer="outptu")
    assert "a rounding that sees the layers' inputs" in refused(weight_observer="output")
    assert "'gptq'" in refused(rounding="gptk")
    assert "seen no values" in refused(rounding="gptq", batches=[TRAIN[:0]])
    bad = TRAIN.clone()
    bad[3, 0, 0, 0] = torch.nan
    assert "1 NaN" in refused(rounding="gptq", batches=[bad])
