"""What a model's quantizers say: where codes are, which there can be, and what they mean."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import nn

from qdeploy.core import scheme as schemes
from qdeploy.core.scheme import QScheme
from qdeploy.runtimes.onnxruntime import Runtime
from qdeploy.verify import parity as parity_module
from qdeploy.verify.artifact import integer_layers, parse
from qdeploy.verify.constants import Constants
from qdeploy.verify.inspection import layers_of
from qdeploy.verify.parity import parity
from tests.networks import Built, Net, build, conv, samples

IMAGES = samples(4, 8, 8, 8)


@pytest.fixture(scope="module")
def narrow() -> Built:
    torch.manual_seed(0)
    net = Net(lambda m, x: m.b(F.max_pool2d(m.a(x).relu(), 2)), a=conv(), b=conv())
    return build(net, IMAGES, weight=schemes.weight(3), activation=schemes.activation(4))


def initializer(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def test_a_clip_of_codes_is_part_of_the_quantizer(narrow):
    layers = {layer.name: layer for layer in integer_layers(parse(narrow.model))}
    assert set(layers) == {"a", "max_pool2d", "b"}
    output = layers["a"].output
    assert output is not None
    assert (output.codes, output.name, output.limits, output.scheme) == ("relu:codes", "relu", (0, 15), QScheme(4))
    assert layers["a"].inputs[0].limits == (0, 15)
    assert layers["max_pool2d"].inputs[0] == output
    moved = layers["max_pool2d"].output
    assert moved is not None
    assert (moved.codes, moved.limits) == ("max_pool2d:codes", (0, 15))  # without a Clip of its own


def test_packed_weights_are_read_without_onnxruntime(narrow):
    weights = {layer.name: layer.inputs[1] for layer in integer_layers(parse(narrow.model)) if layer.op == "Conv"}
    for layer in narrow.placement.layers:
        np.testing.assert_array_equal(weights[layer.name].constant, layer.weight.codes.numpy())
        assert weights[layer.name].stored == 8 * 8 * 9 * 3 // 8


def test_what_depends_on_an_input_is_no_constant(narrow):
    constants = Constants(parse(narrow.model))
    assert constants.get("a.weight:codes") is not None
    assert constants.get("relu:codes") is None
    assert constants.get("x") is None
    assert constants.get("nothing") is None
    assert constants.stored_bytes("a.weight:codes") == constants.stored_bytes("a.weight") == 216


def test_limits_that_are_no_width_are_kept():
    net = Net(lambda m, x: m.b(m.a(x).clamp(0.05, 0.2)), a=conv(), b=conv())
    built = build(net, IMAGES)
    (layer,) = (layer for layer in integer_layers(parse(built.model)) if layer.name == "a")
    assert layer.output is not None
    low, high = layer.output.limits
    assert 0 < low < high == 255
    assert (layer.output.scheme.qmin, layer.output.scheme.qmax, layer.output.scheme.bits) == (low, high, 8)
    assert built.parity().differing_codes == 0


def test_a_clip_may_have_one_limit():
    built = build(Net(lambda m, x: m.b(m.a(x).clamp(max=-0.1)), a=conv(), b=conv()), IMAGES)
    (layer,) = (layer for layer in integer_layers(parse(built.model)) if layer.name == "a")
    assert layer.output is not None
    assert layer.output.limits[0] == 0
    assert 0 < layer.output.limits[1] < 255
    assert built.parity().differing_codes == 0


def test_codes_that_are_read_before_they_are_clipped():
    """Then the quantizer has all codes, and only the clip's readers have fewer."""
    net = Net(lambda m, x: (lambda h: m.b(h.clamp(0.05, 0.2)) + m.b(h))(m.a(x)), a=conv(), b=conv())
    built = build(net, IMAGES)
    layers = {layer.name: layer for layer in integer_layers(parse(built.model))}
    assert layers["a"].output is not None
    assert layers["a"].output.limits == (0, 255)
    assert layers["b"].inputs[0].limits != (0, 255)
    assert layers["b_1"].inputs[0].limits == (0, 255)
    assert built.parity().differing_codes == 0


def test_a_wrong_limit_is_seen(narrow, monkeypatch):
    """The artifact held against the integer arithmetic of a model that clips at another code."""
    other = onnx.load_from_string(narrow.model)
    (clip,) = (node for node in other.graph.node if node.name == "relu:codes")
    limit = initializer(other, clip.input[2])
    assert numpy_helper.to_array(limit) == 15
    limit.CopyFrom(numpy_helper.from_array(np.uint8(9), limit.name))
    monkeypatch.setattr(parity_module, "integer_layers", lambda proto: integer_layers(other))
    seen = {layer.name: layer.differing_codes for layer in parity(narrow.model, [narrow.feeds]).layers}
    assert seen["a"] > 0
    assert seen["b"] == 0


@pytest.mark.parametrize("factor", [0.5, 1.7])
def test_scales_of_quantizing_and_dequantizing_may_differ(factor):
    """Kernels take each node's own scale, and so does the reference."""
    torch.manual_seed(0)
    net = Net(lambda m, x: m.fc((m.b(m.a(x).relu()) + m.c(x)).relu().flatten(1)), a=conv(), b=conv(), c=conv(),
              fc=nn.Linear(512, 3))  # fmt: skip
    built = build(net, IMAGES, activation=schemes.activation(4))
    proto = onnx.load_from_string(built.model)
    for value, bias in (("relu", "b"), ("relu_1", "fc")):
        scale = numpy_helper.to_array(initializer(proto, f"{value}.output.scale"))
        proto.graph.initializer.append(numpy_helper.from_array(np.float32(factor) * scale, f"{value}.real_scale"))
        for node in proto.graph.node:
            if node.op_type == "DequantizeLinear" and node.input[1] == f"{value}.output.scale":
                node.input[1] = f"{value}.real_scale"
        biases = initializer(proto, f"{bias}.bias.scale")
        biases.CopyFrom(numpy_helper.from_array(np.float32(factor) * numpy_helper.to_array(biases), biases.name))
    # A moved value is quantized with the scale that it was dequantized with.
    (moved,) = (node for node in proto.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "flatten")
    moved.input[1] = "relu_1.real_scale"
    model = proto.SerializeToString()
    layers = {layer.name: layer for layer in integer_layers(parse(model))}
    entering = layers["b"].inputs[0]
    assert entering.dequantize_scale == np.float32(factor) * entering.scale
    assert layers["a"].output == entering
    seen = parity(model, [built.feeds])
    assert seen.differing_codes == 0
    assert {layer.name: layer.kernel for layer in seen.layers} == {
        "a": "QLinearConv", "b": "QLinearConv", "c": "QLinearConv", "add": "QLinearAdd", "fc": "QGemm",
    }  # fmt: skip
    assert not np.array_equal(Runtime(model).run(built.feeds)["output"], built.run()[0])


def test_every_code_of_a_narrow_model_is_compared(narrow):
    """And reading the codes changed no kernel and no answer: parity would refuse."""
    seen = narrow.parity()
    assert {layer.name: layer.outputs_checked for layer in seen.layers} == {
        "a": IMAGES.numel(), "max_pool2d": IMAGES.numel() // 4, "b": IMAGES.numel() // 4,
    }  # fmt: skip
    assert seen.differing_codes == 0
    assert all(layer.exact for layer in seen.layers)


def test_bits_are_those_of_the_file(narrow):
    records = {r.name: (r.weight_bits, r.activation_bits) for r in layers_of(narrow.model, narrow.coverage)}
    # No layer reads the last value, so it keeps 8 bits.
    assert records == {"a": (3, 4), "max_pool2d": (None, 4), "b": (3, 8)}


def test_coverage_of_packed_narrow_layers_is_whole(narrow):
    assert narrow.coverage.integer_mac_share == 1
    assert narrow.coverage.computes_in_integers
    assert [layer.macs for layer in narrow.coverage.layers] == [64 * 8 * 72, 16 * 8 * 72]
