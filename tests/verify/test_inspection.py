"""The layer table of any ONNX model, without data."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qdeploy.core import scheme
from qdeploy.export.to_onnx import to_onnx
from qdeploy.quant import ptq
from qdeploy.quant.placement import place
from qdeploy.verify.coverage import coverage
from qdeploy.verify.inspection import layers_of
from tests.bundles import integer_model
from tests.networks import Net, build, conv, graph_of, samples

IMAGES = samples(4, 8, 8, 8)


def table(model: bytes) -> dict[str, tuple]:
    records = layers_of(model, coverage(model))
    return {r.name: (r.op, r.kernel, r.integer, r.weight_bits, r.activation_bits) for r in records}


def test_layers_of_an_integer_model():
    net = Net(lambda m, x: m.fc((m.a(x).relu() + m.b(x)).flatten(1)), a=conv(), b=conv(), fc=nn.Linear(512, 4))
    assert table(build(net, IMAGES).model) == {
        "a": ("Conv", "QLinearConv", True, 8, 8),
        "b": ("Conv", "QLinearConv", True, 8, 8),
        "add": ("Add", "QLinearAdd", True, None, 8),
        "flatten": ("Reshape", "Reshape", True, None, 8),
        "fc": ("Gemm", "QGemm", True, 8, None),
    }


def test_float_layers_say_why():
    net = Net(lambda m, x: m.b(m.up(F.silu(m.a(x)))), a=conv(), up=nn.ConvTranspose2d(8, 8, 2, 2), b=conv())
    model = build(net, IMAGES).model
    records = {record.name: record for record in layers_of(model, coverage(model))}
    assert [name for name, record in records.items() if not record.integer] == ["up"]
    assert "transposed convolution" in records["up"].reason
    assert all(record.macs > 0 for record in records.values())


def test_a_float32_model():
    model = to_onnx(graph_of(nn.Sequential(conv(), nn.ReLU(), conv()), IMAGES), IMAGES)
    assert {name: row[1:] for name, row in table(model).items()} == {
        "0": ("Conv", False, None, None), "2": ("Conv", False, None, None),
    }  # fmt: skip


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 7, 8])
def test_weight_bits_are_those_that_the_codes_need(bits):
    graph = graph_of(nn.Sequential(conv(), nn.ReLU(), conv()), IMAGES)
    placement = place(graph, weight=scheme.weight(bits))
    ptq.quantize(graph, placement, [IMAGES])
    assert [row[3] for row in table(to_onnx(graph, IMAGES)).values()] == [bits, bits]


def test_a_model_that_qdeploy_did_not_make():
    found = table(integer_model())
    assert {name: (row[1], row[2]) for name, row in found.items() if row[3]} == {
        "conv": ("QLinearConv", True), "fc": ("QGemm", True),
    }  # fmt: skip


def test_a_quantized_operator_that_runs_in_float32_is_not_called_integer():
    """One between quantizers that onnxruntime has no rule for."""
    torch.manual_seed(0)
    net = Net(lambda m, x: m.b(torch.tanh(m.a(x))), a=conv(), b=conv())
    found = table(build(net, IMAGES).model)
    assert found["tanh"] == ("Tanh", "Tanh", False, None, 8)
    assert found["a"][2]
