"""Parity: what agrees agrees, and every kind of disagreement is seen."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import nn

from qdeploy.core.errors import QDeployError
from qdeploy.export.to_onnx import to_onnx
from qdeploy.verify import parity as parity_module
from qdeploy.verify.artifact import integer_layers, parse
from qdeploy.verify.parity import Parity, parity, sqnr_db
from tests.networks import Built, build, conv, graph_of, samples

IMAGES = samples(4, 8, 8, 8)


class Small(nn.Module):
    """Convolution, addition, pooling and a linear layer at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(), conv(), nn.Linear(8, 4)

    def forward(self, x):
        h = F.relu(self.a(x))
        return self.fc(F.max_pool2d(self.b(h) + h, 2).mean((2, 3)))


@pytest.fixture(scope="module")
def small() -> Built:
    torch.manual_seed(0)
    return build(Small(), IMAGES)


def tampered(built: Built, name: str, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
    """The artifact with one stored tensor changed."""
    proto = onnx.load_from_string(built.model)
    (stored,) = (i for i in proto.graph.initializer if i.name == name)
    array = numpy_helper.to_array(stored)
    stored.CopyFrom(numpy_helper.from_array(np.asarray(change(array.copy()), array.dtype), name))
    return proto.SerializeToString()


def against(built: Built, reference: bytes, monkeypatch: pytest.MonkeyPatch) -> Parity:
    """The artifact in onnxruntime held against the integer arithmetic of another model."""
    monkeypatch.setattr(parity_module, "integer_layers", lambda proto: integer_layers(parse(reference)))
    return parity(built.model, [built.feeds])


def wrong(seen: Parity) -> dict[str, int]:
    return {layer.name: layer.differing_codes for layer in seen.layers if layer.differing_codes}


# ----------------------------------------------------------------------------------------------------------- agreement


def test_every_code_is_compared(small):
    batches = [{"x": samples(4, 8, 8, 8, seed=i).numpy()} for i in range(3)]
    seen = parity(small.model, batches)
    assert seen.samples == 12
    assert {layer.name: (layer.op, layer.outputs_checked) for layer in seen.layers} == {
        "a": ("Conv", 12 * 512), "b": ("Conv", 12 * 512), "add": ("Add", 12 * 512), "max_pool2d": ("MaxPool", 12 * 128),
        "mean": ("GlobalAveragePool", 12 * 8), "fc": ("Gemm", 12 * 4),
    }  # fmt: skip
    assert {layer.name: layer.kernel for layer in seen.layers} == {
        "a": "QLinearConv", "b": "QLinearConv", "add": "QLinearAdd", "max_pool2d": "NhwcMaxPool",
        "mean": "QLinearGlobalAveragePool", "fc": "QGemm",
    }  # fmt: skip
    assert seen.differing_codes == 0
    assert [layer.name for layer in seen.layers if not layer.exact] == ["mean"]
    assert seen.outputs_checked == sum(layer.outputs_checked for layer in seen.layers if layer.exact)


def test_a_float32_model_has_nothing_to_compare(small):
    seen = parity(to_onnx(graph_of(small.net, IMAGES), IMAGES), [small.feeds])
    assert seen.layers == ()
    assert seen.outputs_checked == 0


# -------------------------------------------------------------------------------------------------------- disagreement


def one_code_more(codes: np.ndarray) -> np.ndarray:
    flat = codes.reshape(-1)
    flat[np.abs(flat) < 100] += 1  # away from saturation
    return codes


def single(codes: np.ndarray) -> np.ndarray:
    codes.reshape(-1)[5] += -20 if codes.reshape(-1)[5] > 0 else 20
    return codes


@pytest.mark.parametrize(
    ("name", "change", "layer"),
    [
        ("a.weight", single, "a"),
        ("b.weight", single, "b"),
        ("fc.weight", single, "fc"),
        ("a.bias", lambda codes: codes + 500, "a"),
        ("fc.bias", lambda codes: codes + 1, "fc"),  # one unit of the accumulator: seen, as the output is float32
        ("a.weight.scale", lambda scale: scale * np.float32(1.01), "a"),
        ("fc.weight.scale", lambda scale: np.nextafter(scale, np.float32(1)), "fc"),  # the last bit of a scale
    ],
)
def test_a_difference_in_one_layer_is_seen_in_that_layer(small, name, change, layer, monkeypatch):
    assert set(wrong(against(small, tampered(small, name, change), monkeypatch))) == {layer}


def test_a_difference_in_a_scale_is_seen_on_both_sides(small, monkeypatch):
    reference = tampered(small, "relu.output.scale", lambda scale: scale * np.float32(1.02))
    seen = wrong(against(small, reference, monkeypatch))
    assert set(seen) == {"a", "b", "add"}


def test_a_difference_in_a_zero_point_is_seen(small, monkeypatch):
    reference = tampered(small, "add.output.zero_point", lambda zero_point: zero_point + 1)
    seen = against(small, reference, monkeypatch)
    assert "add" in wrong(seen)
    assert max(layer.max_step for layer in seen.layers if layer.name == "add") == 1


def test_one_rounding_is_seen(small, monkeypatch):
    """Half up instead of half to even, in one layer's requantization: few codes, each off by one."""
    requantize = parity_module.reference.affine.requantize

    def half_up(accumulator, factor, zero_point, scheme):
        scaled = accumulator.astype(np.float32) * np.asarray(factor).reshape(-1, *[1] * (accumulator.ndim - 2))
        up = np.floor(np.clip(scaled, -1e6, 1e6) + 0.5 + 1e-2) + zero_point
        return np.clip(up, scheme.qmin, scheme.qmax).astype(scheme.dtype)

    monkeypatch.setattr(parity_module.reference.affine, "requantize", half_up)
    seen = parity(small.model, [small.feeds])
    (a,) = (layer for layer in seen.layers if layer.name == "a")
    assert 0 < a.differing_codes < a.outputs_checked / 20
    assert a.max_step == 1
    assert requantize is not half_up


def test_a_kernel_that_is_wrong_is_seen():
    """onnxruntime's QLinearAveragePool divides a window that hangs over the edge by its whole size."""
    pool = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1}
    model = qdq_model("AveragePool", pool)
    feeds = {"x": samples(2, 3, 12, 12).numpy()}
    seen = parity(model, [feeds])
    assert [layer.kernel for layer in seen.layers] == ["QLinearAveragePool"]
    assert seen.layers[0].max_step > 1
    assert parity(qdq_model("AveragePool", {**pool, "count_include_pad": 0}), [feeds]).layers[0].max_step == 0


def qdq_model(op: str, attributes: dict, *between: onnx.NodeProto, quantizers: tuple[str, ...] = ("s", "t")) -> bytes:
    """Q - DQ - op - Q - DQ, with scale 0.02 before and 0.03 behind."""
    first, second = quantizers
    constants = {"s": np.float32(0.02), "t": np.float32(0.03), "z": np.uint8(128)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", first, "z"], ["x:codes"], name="q"),
        helper.make_node("DequantizeLinear", ["x:codes", first, "z"], ["x:real"], name="dq"),
        helper.make_node(op, ["x:real"], ["y"], name="layer", **attributes),
        helper.make_node("QuantizeLinear", ["y", second, "z"], ["y:codes"], name="q2"),
        *between,
        helper.make_node("DequantizeLinear", ["y:codes", second, "z"], ["output"], name="dq2"),
    ]
    graph = helper.make_graph(
        nodes, op, [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3, 12, 12])],
        [helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [3, 3], "pads": [0, 1, 1, 1], "ceil_mode": 1}),
        ("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 3], "pads": [1, 0, 0, 1]}),
        ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
        ("AveragePool", {"kernel_shape": [5, 2], "strides": [5, 2], "pads": [1, 0, 1, 0], "count_include_pad": 1}),
        ("AveragePool", {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1}),
        ("GlobalAveragePool", {}),
        ("Sigmoid", {}),
        ("LeakyRelu", {"alpha": 0.3}),
    ],
)
@pytest.mark.parametrize("quantizers", [("s", "t"), ("s", "s"), ("t", "s")])
def test_operators_of_anybodys_model(op, attributes, quantizers):
    seen = parity(qdq_model(op, attributes, quantizers=quantizers), [{"x": samples(3, 3, 12, 12).numpy()}])
    (layer,) = seen.layers
    assert layer.outputs_checked > 0
    assert layer.max_step <= (0 if layer.exact else 1)


@pytest.mark.parametrize(("op", "attributes"), [("MaxPool", {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"})])
def test_what_the_reference_does_not_know_is_not_claimed(op, attributes):
    assert parity(qdq_model(op, attributes), [{"x": samples(3, 3, 12, 12).numpy()}]).layers == ()


def test_a_model_that_runs_differently_when_watched_is_refused():
    """onnxruntime merges two quantizers in a row, unless somebody reads the codes between them."""
    between = [
        helper.make_node("DequantizeLinear", ["y:codes", "t", "z"], ["again"], name="dq3"),
        helper.make_node("QuantizeLinear", ["again", "u", "z"], ["again:codes"], name="q3"),
        helper.make_node("DequantizeLinear", ["again:codes", "u", "z"], ["output"], name="dq4"),
    ]
    proto = onnx.load_from_string(qdq_model("LeakyRelu", {"alpha": 0.1}, *between))
    del proto.graph.node[-1]
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(0.047), "u"))
    with pytest.raises(QDeployError, match="Reading this model's codes changes"):
        parity(proto.SerializeToString(), [{"x": samples(3, 3, 12, 12).numpy()}])


def test_what_is_no_model_is_a_clear_error():
    for data in (b"", b"not a model", b"\x08\x0a"):
        with pytest.raises(QDeployError, match="not a valid ONNX model"):
            parity(data, [])


# ---------------------------------------------------------------------------------------------------------------- sqnr


def test_sqnr_is_ten_log_of_the_power_ratio():
    signal = np.array([3.0, -4.0])
    assert sqnr_db(signal, signal + np.array([0.03, -0.04])) == pytest.approx(40.0)
    assert sqnr_db(signal, signal) == math.inf


def test_layers_are_measured_against_float32(small):
    seen = parity(small.model, [small.feeds], float_model=to_onnx(graph_of(small.net, IMAGES), IMAGES))
    by_name = {layer.name: layer for layer in seen.layers}
    for layer in by_name.values():
        assert layer.sqnr_db is not None
        assert 20 < layer.sqnr_db < 80
        assert layer.sqnr_local_db is not None
    # Alone, a layer is closer to float32 than behind others.
    assert by_name["a"].sqnr_db == pytest.approx(by_name["a"].sqnr_local_db)
    assert by_name["fc"].sqnr_local_db > by_name["fc"].sqnr_db
    expected = sqnr_db(small.net(IMAGES).detach().numpy(), small.run()[0])
    assert by_name["fc"].sqnr_db == pytest.approx(expected, abs=0.1)


def test_sqnr_does_not_depend_on_batches(small):
    floats = to_onnx(graph_of(small.net, IMAGES), IMAGES)
    whole = parity(small.model, [small.feeds], float_model=floats)
    parts = parity(small.model, [{"x": small.feeds["x"][i : i + 1]} for i in range(4)], float_model=floats)
    for one, other in zip(whole.layers, parts.layers, strict=True):
        assert one.sqnr_db == pytest.approx(other.sqnr_db, abs=1e-3)
