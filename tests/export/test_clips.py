"""Activations of fewer than 8 bits: codes are clipped as integers, once, and every layer around them stays integer."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import nn

from qdeploy.core import scheme as schemes
from qdeploy.export.passes import clips
from qdeploy.runtimes.onnxruntime import Runtime
from qdeploy.verify.artifact import expose
from qdeploy.verify.inspection import layers_of
from tests.networks import Built, Net, build, check, conv, outputs_of, samples

IMAGES = samples(4, 8, 8, 8)


def network() -> Net:
    """Moved values, a residual addition, pooling, and a linear layer whose input was moved twice."""
    torch.manual_seed(0)

    def run(m, x):
        h = F.max_pool2d(m.a(x).relu(), 2)
        return m.fc(F.max_pool2d((m.b(h) + h).relu(), 2).flatten(1))

    return Net(run, a=conv(), b=conv(), fc=nn.Linear(32, 5))


def code_values(built: Built) -> dict[str, np.ndarray]:
    """The codes of every activation, on the example."""
    proto = onnx.load_from_string(built.model)
    names = [node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"]
    stored = {tensor.name for tensor in proto.graph.initializer}
    names = [name for name in names if name not in stored and not name.endswith(".weight:codes")]
    return Runtime(expose(proto, names)).run(built.feeds, names)


def operators(built: Built, op_type: str) -> list[str]:
    return [node.name for node in onnx.load_from_string(built.model).graph.node if node.op_type == op_type]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7])
def test_layers_around_narrow_codes_run_in_integers(bits):
    built = build(network(), IMAGES, activation=schemes.activation(bits))
    kernels = built.kernels
    assert (kernels["QLinearConv"], kernels["QLinearAdd"], kernels["QGemm"]) == (2, 1, 1)
    assert not set(kernels) & {"Conv", "FusedConv", "Gemm", "FusedGemm", "Add"}
    assert kernels["QuantizeLinear"] == 1  # the input's
    seen = built.parity()
    assert seen.differing_codes == 0
    assert [layer.op for layer in seen.layers] == ["Conv", "MaxPool", "Conv", "Add", "MaxPool", "Gemm"]
    assert max(layer.max_step for layer in seen.layers) == 0
    values = code_values(built)
    assert {"x:codes", "relu:codes", "max_pool2d:codes", "flatten:codes"} <= set(values)
    for name in ("x:codes", "relu:codes", "max_pool2d:codes"):
        assert 2 ** (bits - 1) <= values[name].max() < 2**bits, name  # the range is used, and not left


@pytest.mark.parametrize("bits", [2, 4])
def test_the_graph_computes_what_the_artifact_computes(bits):
    built = build(network(), IMAGES, activation=schemes.activation(bits))
    found, expected = built.run()[0], outputs_of(built.graph, IMAGES)[0]
    # Float sums of exact products round differently; a code that differs would be far larger.
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_moved_codes_are_not_clipped_again():
    built = build(network(), IMAGES, activation=schemes.activation(4))
    narrow = [name for name in operators(built, "Clip") if "max_pool" not in name and "flatten" not in name]
    assert operators(built, "Clip") == narrow
    assert "relu:codes" in narrow
    assert len(narrow) == len(set(narrow)) == built.kernels["Clip"]
    bits = {r.name: r.activation_bits for r in layers_of(built.model, built.coverage)}
    assert bits["a"] == bits["max_pool2d"] == 4


def test_eight_bits_need_no_clip():
    assert operators(build(network(), IMAGES), "Clip") == []


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m.b(F.hardtanh(m.a(x), -0.3, 0.3)),
        lambda m, x: m.b(m.a(x).clamp(0.05, 0.2)),
        lambda m, x: m.b(m.a(x).clamp(max=-0.1)),
        lambda m, x: m.b(F.relu6(m.a(x)).clamp(0.5, 5.0)),
    ],
)
def test_a_clip_of_the_model_and_that_of_the_quantizer_are_one(run):
    built = build(Net(run, a=conv(), b=conv()), IMAGES, activation=schemes.activation(6))
    clipped = operators(built, "Clip")
    assert len(clipped) == 2  # of the input, of the value between; what nobody reads in integers has 8 bits
    check(built, sqnr=10)
    values = code_values(built)
    assert all(array.max() < 64 for name, array in values.items() if name != "b:codes")


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_padding_keeps_narrow_codes_narrow(mode):
    net = Net(lambda m, x: m.b(F.pad(m.a(x), (2, 1, 0, 3), mode=mode)), a=conv(), b=conv())
    built = build(net, IMAGES, activation=schemes.activation(5))
    assert built.kernels["QLinearConv"] == 2
    assert built.kernels["Clip"] == 2
    assert all(array.max() < 32 for name, array in code_values(built).items() if name != "b:codes")
    check(built, sqnr=10)


# ----------------------------------------------------------------------------------------------------- the pass alone


def chain(*limits: tuple[int, int]) -> ir.Model:
    """Clips of codes in a row."""
    nodes, constants = [], []
    for i, pair in enumerate(limits):
        names = [f"low{i}", f"high{i}"]
        constants += [numpy_helper.from_array(np.uint8(v), n) for v, n in zip(pair, names, strict=True)]
        source, target = f"v{i}" if i else "codes", "output" if i == len(limits) - 1 else f"v{i + 1}"
        nodes.append(helper.make_node("Clip", [source, *names], [target], name=f"clip{i}"))
    tensor = (onnx.TensorProto.UINT8, [256])
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("codes", *tensor)],
        [helper.make_tensor_value_info("output", *tensor)], constants,
    )  # fmt: skip
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


@pytest.mark.parametrize("first", [(0, 15), (3, 200), (20, 20)])
@pytest.mark.parametrize("second", [(0, 15), (0, 63), (7, 9), (100, 250)])
@pytest.mark.parametrize("third", [(0, 255), (5, 120)])
def test_merging_clips_is_exact(first, second, third):
    model = chain(first, second, third)
    clips.merge(model)
    assert [node.op_type for node in model.graph] == ["Clip"]
    every = np.arange(256, dtype=np.uint8)
    (found,) = Runtime(ir.to_proto(model).SerializeToString()).run({"codes": every}).values()
    np.testing.assert_array_equal(found, np.clip(np.clip(np.clip(every, *first), *second), *third))


def moved_chain(op: str, *, scale: float = 0.1, zero_point: int = 3, limits: tuple[int, int] = (0, 15), **attributes):
    """Q - Clip 0..15 - DQ - op - Q - Clip - DQ; the second quantizer has ``scale``, ``zero_point`` and ``limits``."""
    constants = {
        "s": np.float32(0.1), "z": np.uint8(3), "t": np.float32(scale), "u": np.uint8(zero_point),
        "low": np.uint8(0), "high": np.uint8(15), "low2": np.uint8(limits[0]), "high2": np.uint8(limits[1]),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["wide"]),
        helper.make_node("Clip", ["wide", "low", "high"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["real"]),
        helper.make_node(op, ["real"], ["moved"], **attributes),
        helper.make_node("QuantizeLinear", ["moved", "t", "u"], ["wide2"]),
        helper.make_node("Clip", ["wide2", "low2", "high2"], ["codes2"]),
        helper.make_node("DequantizeLinear", ["codes2", "t", "u"], ["output"]),
    ]
    tensor = (onnx.TensorProto.FLOAT, [1, 1, 8, 8])
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", *tensor)],
        [helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, [1, 1, None, None])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


POOL = {"kernel_shape": [2, 2], "strides": [2, 2]}


@pytest.mark.parametrize(
    ("op", "options", "dropped"),
    [
        ("MaxPool", POOL, True),
        ("MaxPool", {**POOL, "pads": [1, 1, 0, 0]}, True),
        ("Transpose", {"perm": [0, 1, 3, 2]}, True),
        ("Identity", {"limits": (0, 31)}, True),
        ("MaxPool", {**POOL, "scale": 0.2}, False),  # another quantizer
        ("MaxPool", {**POOL, "zero_point": 4}, False),
        ("MaxPool", {**POOL, "limits": (0, 7)}, False),  # narrower codes
        ("AveragePool", POOL, False),  # computes
        ("Relu", {}, False),
    ],
)
def test_a_clip_is_dropped_only_where_it_changes_nothing(op, options, dropped):
    proto = moved_chain(op, **options)
    model = ir.from_proto(proto)
    clips.drop_redundant(model)
    assert [node.op_type for node in model.graph].count("Clip") == (1 if dropped else 2)
    feeds = {"x": 3 * samples(1, 1, 8, 8).numpy()}
    before = Runtime(proto.SerializeToString()).run(feeds)["output"]
    np.testing.assert_array_equal(Runtime(ir.to_proto(model).SerializeToString()).run(feeds)["output"], before)


def test_codes_come_back_from_their_real_values():
    """The argument of the pass, for every scale's rounding: (c - z) * s / s is c - z."""
    generator = np.random.default_rng(0)
    scales = np.exp(generator.uniform(-60, 60, 20000)).astype(np.float32)[:, None]
    steps = np.arange(-255, 256, dtype=np.float32)
    np.testing.assert_array_equal(np.rint(steps * scales / scales), np.broadcast_to(steps, (20000, 511)))
