"""Coverage: multiply-accumulates counted by hand, kernels read from the graph that runs, reasons for the rest."""

from __future__ import annotations

import warnings

import onnx
import pytest
import torch
from onnx import helper
from onnxruntime import quantization as tool
from torch import nn

from qdeploy.core.errors import QDeployError
from qdeploy.export import artifact
from qdeploy.export.to_onnx import to_onnx
from qdeploy.quant.fusion_table import FLOAT_REASONS
from qdeploy.runtimes.onnxruntime import optimized_graph
from qdeploy.torchvision_remedy import import_torchvision
from qdeploy.verify import coverage as coverage_module
from qdeploy.verify.artifact import parse
from qdeploy.verify.coverage import coverage, kernels_by_layer, layer_macs, runs_in_integers
from qdeploy.verify.parity import parity
from tests.networks import Net, build, conv, graph_of, label, samples

IMAGES, VECTORS, SEQUENCES = samples(4, 8, 12, 10), samples(4, 16), samples(4, 10, 16)


def macs(net: nn.Module, example: torch.Tensor) -> dict[str, int]:
    return layer_macs(parse(to_onnx(graph_of(net.eval(), example), example)))


@pytest.mark.parametrize(
    ("net", "example", "expected"),
    [
        (conv(8, 16, 3), IMAGES, 16 * 12 * 10 * 8 * 9),
        (conv(8, 16, 3, stride=2), IMAGES, 16 * 6 * 5 * 8 * 9),
        (conv(8, 16, 3, groups=4), IMAGES, 16 * 12 * 10 * 2 * 9),
        (conv(8, 8, 5, groups=8, padding=0), IMAGES, 8 * 8 * 6 * 25),
        (nn.Conv1d(16, 4, 3), samples(4, 16, 20), 4 * 18 * 16 * 3),
        (nn.ConvTranspose2d(8, 6, 2, 2), IMAGES, 8 * 12 * 10 * 6 * 4),
        (nn.Linear(16, 5), VECTORS, 16 * 5),
        (nn.Linear(16, 5), SEQUENCES, 10 * 16 * 5),
        (Net(lambda m, x: x @ x.transpose(1, 2)), SEQUENCES, 10 * 10 * 16),
        (nn.LSTM(16, 8, batch_first=True), SEQUENCES, 10 * (4 * 8 * 16 + 4 * 8 * 8)),
        (nn.LSTM(16, 8, batch_first=True, bidirectional=True), SEQUENCES, 2 * 10 * (4 * 8 * 16 + 4 * 8 * 8)),
    ],
    ids=label,
)
def test_multiply_accumulates_of_one_sample(net, example, expected):
    assert sum(macs(net, example).values()) == expected


def test_counts_agree_with_the_number_that_papers_give():
    net = import_torchvision("models").mobilenet_v2(weights=None)
    assert sum(macs(net, samples(2, 3, 224, 224)).values()) == pytest.approx(300e6, rel=0.01)


def test_shapes_that_inference_does_not_know_are_measured():
    """Behind an LSTM onnx does not infer the shape of what a linear layer reads."""
    net = Net(lambda m, x: m.fc(m.rnn(x)[0]), rnn=nn.LSTM(16, 8, batch_first=True), fc=nn.Linear(8, 3))
    assert macs(net, SEQUENCES)["fc"] == 10 * 8 * 3
    found = build(net, SEQUENCES).coverage
    assert {layer.op: layer.integer for layer in found.layers} == {"DynamicQuantizeLSTM": True, "Gemm": True}
    assert {layer.op: layer.macs for layer in found.layers} == {"DynamicQuantizeLSTM": 7680, "Gemm": 240}
    assert found.integer_mac_share == 1
    assert found.answers_alone
    assert not found.computes_in_integers


def test_a_rank_that_inference_does_not_know_is_no_scalars():
    """What is picked from the result of an operator that onnx has not heard of."""
    net = Net(
        lambda m, x: m.last(m.norm(x + m.first(x))[:, -1]),
        first=nn.Linear(16, 16),
        norm=nn.LayerNorm(16),
        last=nn.Linear(16, 3),
    )
    found = layer_macs(parse(artifact.quantized(net.eval(), SEQUENCES, [SEQUENCES], dynamic=True).model))
    assert found == {"first": 10 * 16 * 16, "last": 16 * 3}


def test_every_float_layer_is_named_with_its_reason():
    net = Net(lambda m, x: m.c(m.up(m.a(x).relu())), a=conv(), up=nn.ConvTranspose2d(8, 8, 2, 2), c=conv())
    found = build(net, IMAGES)
    layers = {layer.name: layer for layer in found.coverage.layers}
    assert {name: (layer.kernel, layer.integer) for name, layer in layers.items()} == {
        "a": ("QLinearConv", True), "up": ("ConvTranspose", False), "c": ("QLinearConv", True),
    }  # fmt: skip
    assert layers["up"].reason == FLOAT_REASONS["ConvTranspose"]
    assert not layers["a"].reason
    integer = layers["a"].macs + layers["c"].macs
    assert found.coverage.integer_mac_share == pytest.approx(integer / (integer + layers["up"].macs))
    assert not found.coverage.computes_in_integers


def test_a_float32_model():
    found = coverage(to_onnx(graph_of(conv(), IMAGES), IMAGES))
    assert [(layer.kernel, layer.integer, layer.reason) for layer in found.layers] == [
        ("Conv", False, "a float32 model")
    ]
    assert found.integer_mac_share == 0


def test_a_model_that_multiplies_nothing():
    found = coverage(to_onnx(graph_of(nn.ReLU(), IMAGES), IMAGES))
    assert found.layers == ()
    assert found.integer_mac_share == 0
    assert found.kernels == {"Relu": 1}


def test_layers_whose_names_end_in_numbers_are_told_apart():
    """onnxruntime adds numbers to names: those of "a" and "a_1" must not be taken for each other's."""
    net = Net(lambda m, x: m.a(m.a_1(m.a(m.a(x)))), a=conv(), a_1=conv())
    found = build(net, IMAGES, keep_float=("a_2",)).coverage
    assert {layer.name: layer.kernel for layer in found.layers} == {
        "a": "QLinearConv", "a_2": "Conv", "a_1": "QLinearConv", "a_3": "QLinearConv",
    }  # fmt: skip


def test_names_without_a_node_of_theirs_are_not_guessed():
    original = onnx.ModelProto()
    original.graph.node.extend([helper.make_node("Conv", [], ["x"], name=n) for n in ("conv_1", "conv", "b_token_3")])
    optimized = onnx.ModelProto()
    names = ("conv_1_token_5", "conv_token_2_nchwc", "b_token_3_token_1", "Transpose_token_0")
    optimized.graph.node.extend([helper.make_node(f"Q{i}", [], [], name=n) for i, n in enumerate(names)])
    assert kernels_by_layer(optimized, original) == {"conv_1": "Q0", "conv": "Q1", "b_token_3": "Q2"}


def test_a_share_that_the_running_graph_contradicts_is_refused(monkeypatch):
    model = build(conv(), IMAGES).model
    monkeypatch.setattr(coverage_module, "optimized_graph", lambda _: _without_integer_kernels(model))
    monkeypatch.setattr(coverage_module, "kernels_by_layer", lambda *_: {"conv2d": "QLinearConv"})
    with pytest.raises(QDeployError, match="1 layers seem to run in integer kernels, but onnxruntime's graph has 0"):
        coverage(model)


def _without_integer_kernels(model: bytes) -> bytes:
    proto = onnx.load_from_string(optimized_graph(model))
    kept = [node for node in proto.graph.node if node.op_type != "QLinearConv"]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    return proto.SerializeToString()


def test_what_computes_in_integers():
    assert runs_in_integers(["QLinearConv", "QLinearAdd", "NhwcMaxPool", "QuantizeLinear", "Transpose"])
    assert not runs_in_integers(["QLinearConv", "Softmax"])


def test_anybodys_quantized_model(tmp_path):
    """A model of onnxruntime's own quantization tool: coverage and parity read it as well."""
    net = nn.Sequential(conv(), nn.ReLU(), conv(), nn.Flatten(), nn.Linear(960, 4))
    proto = onnx.load_from_string(to_onnx(graph_of(net, IMAGES), IMAGES))

    class Reader(tool.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"input": IMAGES.numpy()}]

        def get_next(self):
            return self.left.pop() if self.left else None

    path = tmp_path / "quantized.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tool.quantize_static(proto, path, Reader(), activation_type=tool.QuantType.QUInt8, per_channel=True)
    model = path.read_bytes()
    assert coverage(model).integer_mac_share == 1
    seen = parity(model, [{"input": IMAGES.numpy()}])
    assert [layer.op for layer in seen.layers] == ["Conv", "Conv", "Gemm"]
    assert seen.differing_codes == 0
    assert seen.outputs_checked == 2 * 4 * 960 + 16
