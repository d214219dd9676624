"""Placement: each rule, and beside each decision the kernels that onnxruntime really runs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdeploy.core import scheme
from qdeploy.graph.layers import LAYER
from qdeploy.quant.placement import place
from qdeploy.quant.quantizer import ActivationQuantizer
from tests.networks import Built, Net, Net2, build, check, conv, graph_of, outputs_of, randomise, samples

IMAGES, VECTORS, SEQUENCES = samples(4, 8, 8, 8), samples(6, 16), samples(4, 10, 16)
CODES_ONLY = {"QuantizeLinear": 1, "DequantizeLinear": 1}  # floats in, floats out, nothing between


def quantizers(net: nn.Module, *example: Tensor, **options) -> list[str]:
    """The values that get quantizers of their own."""
    return list(place(graph_of(net.eval(), *example), **options).activations)


def built(run, *example: Tensor, **layers) -> Built:
    torch.manual_seed(0)
    found = build((Net if len(example) == 1 else Net2)(run, **layers), *example)
    check(found)
    return found


# ------------------------------------------------------------------------------------------- weights and their outputs


def test_until_calibrated_the_graph_computes_in_float32():
    net = Net(lambda m, x: m.b(m.a(x).relu()), a=conv(), b=conv())
    graph = graph_of(net, IMAGES)
    place(graph)
    torch.testing.assert_close(outputs_of(graph, IMAGES), outputs_of(net, IMAGES))


def test_every_layer_knows_its_quantizers():
    net = Net(lambda m, x: m.b(m.a(x).relu().flatten(1)), a=conv(), b=nn.Linear(512, 4))
    placement = place(graph_of(net, IMAGES), weight=scheme.weight(4), activation=scheme.activation(7))
    assert [(layer.name, layer.weight.name, layer.input.name) for layer in placement.layers] == [
        ("a", "a.weight", "x"), ("b", "b.weight", "relu"),
    ]  # fmt: skip
    assert {layer.weight.scheme.bits for layer in placement.layers} == {4}
    assert {quantizer.scheme.bits for quantizer in placement.activations.values()} == {7}


def test_a_convolution_at_the_output_has_an_output_quantizer():
    found = built(lambda m, x: m.b(m.a(x).relu()), IMAGES, a=conv(), b=conv())
    assert list(found.placement.activations) == ["x", "relu", "b"]
    assert found.kernels == {**CODES_ONLY, "QLinearConv": 2}


def test_a_linear_layer_at_the_output_leaves_its_accumulator_as_float32():
    found = built(lambda m, x: m.b(m.a(x).relu()), VECTORS, a=nn.Linear(16, 8), b=nn.Linear(8, 4))
    assert list(found.placement.activations) == ["x", "relu"]
    assert found.kernels == {"QuantizeLinear": 1, "QGemm": 2}


@pytest.mark.parametrize("activation", [torch.relu, torch.tanh, F.softplus])
def test_a_linear_layer_before_an_activation_is_not_fused_into_a_float_gemm(activation):
    found = built(lambda m, x: activation(m.a(x)) - 1, VECTORS, a=nn.Linear(16, 8))
    assert "QGemm" in found.kernels
    assert not {"Gemm", "FusedGemm"} & set(found.kernels)
    at_the_end = built(lambda m, x: activation(m.a(x)), VECTORS, a=nn.Linear(16, 8))
    assert list(at_the_end.placement.activations) == ["x"]
    assert "QGemm" in at_the_end.kernels


def test_linear_layers_on_sequences_and_images():
    layers = {"a": nn.Linear(16, 8), "b": nn.Linear(8, 4)}
    assert built(lambda m, x: m.b(m.a(x).relu()), samples(2, 3, 5, 16), **layers).kernels["QGemm"] == 2


def test_a_layer_whose_weight_depends_on_the_input_stays_in_float32():
    run = lambda m, x: m.b(F.linear(x, m.w * x.abs().mean()))  # noqa: E731
    found = build(Net(run, w=nn.Parameter(samples(8, 16)), b=nn.Linear(8, 4)), VECTORS)
    assert found.placement.float_layers["linear"] == "its weight is computed, not stored"
    assert {"Gemm", "QGemm"} <= set(found.kernels)
    check(found, share=0.2)


# -------------------------------------------------------------------------------------------------------------- clips


@pytest.mark.parametrize("clip", [torch.relu, F.relu6, lambda x: F.relu6(torch.relu(x)), lambda x: x.clamp(0, 0.4)])
def test_a_clip_is_the_range_of_the_quantizer_behind_it(clip):
    found = built(lambda m, x: m.b(clip(m.a(x))), IMAGES, a=conv(), b=conv())
    assert len(found.placement.activations) == 3
    assert found.kernels == {**CODES_ONLY, "QLinearConv": 2}
    (quantizer,) = (q for name, q in found.placement.activations.items() if name not in ("x", "b"))
    assert int(quantizer.zero_point) == 0


def test_a_value_read_with_and_without_its_clip_is_quantized_twice():
    found = built(lambda m, x: m.b(m.a(x).relu()) + m.c(m.a(x)), IMAGES, a=conv(), b=conv(), c=conv())
    assert found.kernels["QLinearConv"] == 4
    run = lambda m, x: (lambda h: m.b(torch.cat([m.c(h.relu()), m.d(h)], 1)))(m.a(x))  # noqa: E731
    found = built(run, IMAGES, a=conv(), b=conv(16), c=conv(), d=conv())
    assert list(found.placement.activations) == ["x", "a", "relu", "c", "d", "cat", "b"]
    assert found.kernels["QLinearConv"] == 4
    assert found.kernels["QLinearConcat"] == 1


def test_a_clip_with_limits_that_are_tensors_is_no_clip():
    run = lambda m, x: m.b(torch.clamp(m.a(x), m.low, m.high))  # noqa: E731
    low, high = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(0.5))
    found = built(run, IMAGES, a=conv(), b=conv(), low=low, high=high)
    assert found.placement.float_layers == {"clamp": "its limits are tensors"}
    assert found.kernels["QLinearConv"] == 2


# -------------------------------------------------------------------------------------------------------------- moves


def test_a_moved_value_shares_the_quantizer_of_its_source():
    run = lambda m, x: m.b(F.max_pool2d(m.a(x).relu(), 2).permute(0, 1, 3, 2)[:, :, 1:].flatten(1))  # noqa: E731
    graph = graph_of(Net(run, a=conv(), b=nn.Linear(96, 4)), IMAGES)
    placement = place(graph)
    assert list(placement.activations) == ["x", "relu"]
    calls = [n.target for n in graph.graph.nodes if n.op == "call_module" and "output" in n.target]
    assert calls == ["x.output_quantizer", *["relu.output_quantizer"] * 5]
    found = built(run, IMAGES, a=conv(), b=nn.Linear(96, 4))
    assert found.kernels["MaxPool"] == 1
    assert "DequantizeLinear" not in found.kernels


def test_a_split_a_shuffle_and_a_concatenation_as_in_shufflenet():
    def run(m, x):
        left, right = m.a(x).relu().chunk(2, 1)
        return m.b(F.channel_shuffle(torch.cat([left, m.c(right).relu()], 1), 2))

    found = built(run, IMAGES, a=conv(), b=conv(), c=conv(4, 4))
    assert {op: n for op, n in found.kernels.items() if op not in ("Slice", "Split")} == {
        **CODES_ONLY, "QLinearConv": 3, "QLinearConcat": 1,
    }  # fmt: skip


# --------------------------------------------------------------------------------------- additions and other arithmetic


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = conv(bias=False), nn.BatchNorm2d(8)

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)


class PreActivation(Residual):
    def forward(self, x):
        return self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x)))))) + x


@pytest.mark.parametrize("block", [Residual, PreActivation])
def test_residual_blocks(block):
    net = nn.Sequential(conv(), block(), block(), nn.Conv2d(8, 4, 1))
    found = build(randomise(net), IMAGES)
    check(found)
    # Batch norm before the first convolution of a pre-activation block is a depthwise convolution.
    convolutions = {Residual: 6, PreActivation: 8}[block]
    assert found.kernels == {**CODES_ONLY, "QLinearConv": convolutions, "QLinearAdd": 2}


def test_an_addition_that_only_floats_read_stays_in_float32():
    found = built(lambda m, x: m.a(x) + m.b(x), IMAGES, a=conv(), b=conv())
    assert found.placement.float_layers == {"add": "it does not lie between integer layers"}
    assert found.kernels == {"QuantizeLinear": 1, "DequantizeLinear": 2, "QLinearConv": 2, "Add": 1}


def test_an_addition_that_only_floats_feed_stays_in_float32():
    run = lambda m, x: m.a(torch.exp(x) + torch.sin(x))  # noqa: E731
    found = built(run, IMAGES, a=conv())
    assert "add" in found.placement.float_layers
    assert found.kernels["Add"] == 1
    assert found.kernels["QuantizeLinear"] == 1  # of the sum


def test_a_chain_of_additions_is_integer_from_end_to_end():
    found = built(lambda m, x: m.d(m.a(x) + m.b(x) + m.c(x) + x), IMAGES, a=conv(), b=conv(), c=conv(), d=conv())
    assert found.kernels == {**CODES_ONLY, "QLinearConv": 4, "QLinearAdd": 3}


@pytest.mark.parametrize(
    ("run", "kernel"),
    [
        (lambda m, x: m.b((lambda h: h + h)(m.a(x))), "QLinearAdd"),
        (lambda m, x: m.b(m.a(x) + x), "QLinearAdd"),
        (lambda m, x: m.b(m.a(x) + F.adaptive_avg_pool2d(m.c(x), 1)), "QLinearAdd"),
        (lambda m, x: m.b((lambda h: h * h)(m.a(x))), "QLinearMul"),
        (lambda m, x: m.b((lambda h: h * torch.sigmoid(m.c(h)))(m.a(x).relu())), "QLinearMul"),
    ],
)
def test_operands_of_any_kind(run, kernel):
    found = built(run, IMAGES, a=conv(), b=conv(), c=conv())
    assert kernel in found.kernels
    assert found.coverage.computes_in_integers


@pytest.mark.parametrize(
    ("run", "name", "reason"),
    [
        (lambda m, x: m.b(m.a(x) + m.map), "add", "an operand is a constant"),
        (lambda m, x: m.b((lambda h: h * 2 + h)(m.a(x))), "mul", "Python number"),
        (lambda m, x: m.b(torch.add(m.a(x), m.c(x), alpha=2)), "add", "scaled addition"),
        (lambda m, x: m.b(torch.exp(m.a(x))), "exp", "aten.exp has no integer kernel"),
        (lambda m, x: m.b(torch.sort(m.a(x), 1)[0]), "getitem", "aten.sort has no integer kernel"),
    ],
)
def test_what_stays_in_float32_says_why(run, name, reason):
    found = built(run, IMAGES, a=conv(), b=conv(), c=conv(), map=nn.Parameter(samples(8, 8, 8)))
    assert reason in found.placement.float_layers[name]
    assert not found.coverage.computes_in_integers


class SqueezeExcite(nn.Module):
    def __init__(self, gate) -> None:
        super().__init__()
        self.fc1, self.fc2, self.gate = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), gate

    def forward(self, x):
        return x * self.gate(self.fc2(self.fc1(F.adaptive_avg_pool2d(x, 1)).relu()))


@pytest.mark.parametrize(
    ("activation", "gate"), [(torch.relu, torch.sigmoid), (F.hardswish, F.hardsigmoid), (F.silu, torch.sigmoid)]
)
def test_squeeze_and_excite(activation, gate):
    """Pooling and product stay integer even where the activations around them are float islands."""
    found = built(lambda m, x: m.b(m.se(activation(m.a(x)))), IMAGES, a=conv(), b=conv(), se=SqueezeExcite(gate))
    assert found.kernels["QLinearGlobalAveragePool"] == 1
    assert found.kernels["QLinearMul"] == 1
    assert found.kernels["QLinearConv"] == 4
    assert found.kernels.get("QLinearSigmoid", 0) == (gate is torch.sigmoid)


def test_pooling_before_a_classifier():
    for pool in (lambda x: x.mean((2, 3)), lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1)):
        found = built(lambda m, x, pool=pool: m.b(pool(m.a(x).relu())), IMAGES, a=conv(), b=nn.Linear(8, 4))
        assert found.kernels == {"QuantizeLinear": 1, "QLinearConv": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1}


def test_two_inputs():
    found = built(lambda m, x, y: m.b(m.a(x) + y), IMAGES, samples(4, 8, 8, 8, seed=1), a=conv(), b=conv())
    assert found.kernels == {"QuantizeLinear": 2, "DequantizeLinear": 1, "QLinearConv": 2, "QLinearAdd": 1}


# ------------------------------------------------------------------------------------------------------- float readers


def test_float_readers_of_a_float_value_read_it_unquantized():
    """In a post-norm transformer the residual stream passes the quantizer of the linear layer beside it by."""
    torch.manual_seed(0)
    net = Net(lambda m, x: (lambda h: h + m.a(h))(m.n(x)), a=nn.Linear(16, 16), n=nn.LayerNorm(16))
    graph = graph_of(net, SEQUENCES)
    place(graph)
    (add,) = (node for node in graph.graph.nodes if node.meta.get(LAYER) == "add")
    assert add.args[0].meta[LAYER] == "n"
    found = build(net, SEQUENCES)
    check(found, sqnr=45)
    assert found.kernels["LayerNormalization"] == 1


def test_float_readers_of_an_integer_value_read_what_there_is():
    found = built(lambda m, x: (lambda h: (h, m.b(h), torch.exp(h)))(m.a(x)), IMAGES, a=conv(), b=conv())
    graph = found.graph
    modules = dict(graph.named_modules())
    (exp,) = (node for node in graph.graph.nodes if node.meta.get(LAYER) == "exp")
    assert isinstance(modules[exp.args[0].target], ActivationQuantizer)
    assert found.kernels["QLinearConv"] == 2


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_transformer_block(norm_first):
    """Linear layers and the attention's products run in integers; layer norm, softmax and residuals in float32."""
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first, activation="gelu")
    last = nn.LayerNorm(16) if norm_first else nn.Identity()
    found = build(nn.Sequential(block, last, nn.Linear(16, 4)), SEQUENCES)
    check(found, sqnr=35)
    kernels = found.kernels
    assert kernels["QGemm"] == 5
    assert kernels["MatMulIntegerToFloat"] == kernels["QLinearMatMul"] == 1
    assert kernels["LayerNormalization"] == 2 + norm_first
    assert kernels["Softmax"] == kernels["Gelu"] == 1
    assert kernels["Add"] == 2
    assert not {"Gemm", "FusedGemm", "MatMul", "QLinearAdd", "QLinearMul", "Mul"} & set(kernels)
    assert {layer.op for layer in found.coverage.layers if not layer.integer} == {
        "LayerNormalization", "Softmax", "Gelu"
    }  # fmt: skip


def test_products_kept_in_float32_by_name():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    found = build(nn.Sequential(block, nn.Linear(16, 4)), SEQUENCES, keep_float=("*attention*",))
    check(found, share=0.7, sqnr=30)
    products = [layer for layer in found.coverage.layers if layer.op == "MatMul"]
    assert [layer.integer for layer in products] == [False, False]
    assert all("MatMulIntegerToFloat" in layer.reason for layer in products)
    assert all("by the recipe" in found.placement.float_layers[layer.name] for layer in products)


# ---------------------------------------------------------------------------------------------------------- keep_float


def test_layers_kept_in_float32_by_name():
    net = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU(), conv(), nn.Flatten(), nn.Linear(512, 4))
    for pattern, kernels in (
        ("0", {"Conv": 1, "QLinearConv": 2, "QGemm": 1}),
        ("2", {"Conv": 1, "QLinearConv": 2, "QGemm": 1}),  # between quantizers: its weights stay float32 all the same
        ("[24]", {"QLinearConv": 1, "QGemm": 1}),
        ("6", {"QLinearConv": 3, "Gemm": 1}),
        ("*", {"Gemm": 1}),
    ):
        found = build(net, IMAGES, keep_float=(pattern,))
        check(found, share=0.0)
        assert kernels.items() <= found.kernels.items()
        kept = [layer.name for layer in found.coverage.layers if not layer.integer]
        assert kept
        assert all(found.placement.float_layers[name] == "kept in float32 by the recipe" for name in kept)


def test_a_classifier_kept_in_float32_behind_a_linear_layer():
    net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    found = build(net, VECTORS, keep_float=("2",))
    check(found, share=0.7)
    assert found.kernels == {"QuantizeLinear": 1, "QGemm": 1, "DequantizeLinear": 1, "Gemm": 1}
