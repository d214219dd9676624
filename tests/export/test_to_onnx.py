"""The artifact as a file: names, shapes, bytes, and what the passes promise."""

from __future__ import annotations

import getpass
import hashlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import nn

import qdeploy
from qdeploy.core.errors import QDeployError
from qdeploy.export.to_onnx import to_onnx
from qdeploy.graph.capture import capture
from qdeploy.runtimes.onnxruntime import Runtime
from tests.networks import Built, Net, Net2, build, check, conv, conv1d, graph_of, label, outputs_of, randomise, samples

IMAGES = samples(4, 8, 8, 8)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2 = conv(bias=False), nn.BatchNorm2d(8), conv()

    def forward(self, x):
        return F.relu(self.conv2(F.relu(self.bn1(self.conv1(x)))) + x)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer1 = conv(), nn.Sequential(Residual(), Residual())
        self.pool, self.output = nn.AvgPool2d(2), nn.Linear(128, 5)  # a layer called as the model's output is

    def forward(self, image):
        return self.output(self.pool(self.layer1(self.stem(image))).flatten(1))


@pytest.fixture(scope="module")
def classifier() -> Built:
    torch.manual_seed(0)
    return build(randomise(Classifier()), IMAGES)


def graph_proto(model: bytes) -> onnx.GraphProto:
    return onnx.load_from_string(model).graph


def initializers(model: bytes) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in graph_proto(model).initializer}


# -------------------------------------------------------------------------------------------------------------- names


def test_layers_keep_their_names(classifier):
    graph = graph_proto(classifier.model)
    computing = [n.name for n in graph.node if n.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    assert computing == [
        "stem", "layer1.0.conv1", "layer1.0.conv2", "layer1.0.add", "layer1.1.conv1", "layer1.1.conv2", "layer1.1.add",
        "pool", "flatten", "output",
    ]  # fmt: skip


def test_values_and_constants_are_called_after_their_layers(classifier):
    graph = graph_proto(classifier.model)
    stored = initializers(classifier.model)
    assert {"layer1.1.conv2.weight", "layer1.1.conv2.bias", "output.weight", "output.bias"} <= set(stored)
    assert stored["layer1.1.conv2.weight"].dtype == np.int8
    assert stored["layer1.1.conv2.bias"].dtype == np.int32
    values = {name for node in graph.node for name in node.output}
    assert {"image:codes", "image:real", "layer1.0.relu_1:codes", "layer1.0.conv1", "layer1.0.relu:codes"} <= values
    assert not [name for name in values | set(stored) if name.startswith(("val_", "node_"))]


def test_names_are_unique(classifier):
    graph = graph_proto(classifier.model)
    nodes = [node.name for node in graph.node]
    values = [name for node in graph.node for name in node.output] + [i.name for i in graph.initializer]
    values += [value.name for value in graph.input]
    assert len(nodes) == len(set(nodes))
    assert len(values) == len(set(values))


def test_the_float32_model_has_the_same_names(classifier):
    """Errors are measured between values of one name."""
    model = to_onnx(graph_of(classifier.net, IMAGES), IMAGES)
    computing = [n.name for n in graph_proto(model).node if n.op_type != "Relu"]
    quantized = [n.name for n in graph_proto(classifier.model).node if not n.op_type.endswith("Linear")]
    assert computing == quantized
    expected = outputs_of(classifier.net, IMAGES)[0]
    np.testing.assert_allclose(Runtime(model).run({"image": IMAGES.numpy()})["output"], expected, atol=1e-5)


# --------------------------------------------------------------------------------------------------- inputs and outputs


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_the_batch_is_free_and_called_batch(classifier):
    graph = graph_proto(classifier.model)
    assert [(v.name, dims(v)) for v in graph.input] == [("image", ["batch", 8, 8, 8])]
    assert [(v.name, dims(v)) for v in graph.output] == [("output", ["batch", 5])]
    runtime = Runtime(classifier.model)
    for batch in (1, 2, 17):
        x = samples(batch, 8, 8, 8, seed=3).numpy()
        whole = runtime.run({"image": x})["output"]
        assert whole.shape == (batch, 5)
        np.testing.assert_array_equal(whole[-1:], runtime.run({"image": x[-1:]})["output"])


def test_several_inputs_and_outputs():
    net = Net2(lambda m, x, y: (m.a(x) + m.b(y), m.b(y).relu()), a=conv(), b=conv())
    example = (IMAGES, samples(4, 8, 8, 8, seed=5))
    graph = graph_of(net, *example)
    model = to_onnx(graph, example)
    assert [v.name for v in graph_proto(model).output] == ["output_0", "output_1"]
    assert [dims(v)[0] for v in (*graph_proto(model).input, *graph_proto(model).output)] == ["batch"] * 4
    named = to_onnx(graph, example, outputs=("sum", "features"))
    found = Runtime(named).run({"x": example[0].numpy(), "y": example[1].numpy()})
    assert list(found) == ["sum", "features"]
    for value, expected in zip(found.values(), outputs_of(net, *example), strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-5)


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: (x, m.a(x)),  # an input
        lambda m, x: (m.a(x),) * 2,  # a value twice
        lambda m, x: (m.a(x), m.scale),  # a stored tensor
        lambda m, x: (lambda h: (h, m.a(h)))(m.a(x)),  # a value inside
    ],
)
def test_any_value_may_be_an_output(run):
    net = Net(run, a=conv(), scale=nn.Parameter(samples(3)))
    built = build(net, IMAGES)
    for found, expected in zip(built.run(), [v.detach().numpy() for v in net(IMAGES)], strict=True):
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 0.1


def test_a_dictionary_of_outputs():
    graph = graph_of(Net(lambda m, x: {"logits": m.a(x), "features": x * 2}, a=conv()), IMAGES)
    assert len(Runtime(to_onnx(graph, IMAGES)).outputs) == 2


def test_names_of_outputs_are_checked():
    graph = graph_of(Net(lambda m, x: (m.a(x), x * 2), a=conv()), IMAGES)
    with pytest.raises(QDeployError, match="2 outputs, but 1 names"):
        to_onnx(graph, IMAGES, outputs=("a",))
    for outputs in (("x", "b"), ("b", "b")):
        with pytest.raises(QDeployError, match="names two of"):
            to_onnx(graph, IMAGES, outputs=outputs)


# -------------------------------------------------------------------------------------------------------------- bytes


def test_the_checker_passes_and_the_opset_is_fixed(classifier):
    proto = onnx.load_from_string(classifier.model)
    onnx.checker.check_model(proto, full_check=True)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 21)]
    assert not proto.functions


def test_there_is_nothing_of_the_machine_in_the_bytes(classifier):
    home, here = str(Path.home()), str(Path(qdeploy.__file__).parents[1])
    words = {home, here, os.uname().nodename, getpass.getuser(), "site-packages", ".py", "torch", "pkg."} - {"", "/"}
    for word in words - ({getpass.getuser()} if len(getpass.getuser()) < 5 else set()):
        assert word.encode() not in classifier.model, word
    proto = onnx.load_from_string(classifier.model)
    assert proto.producer_name == "qdeploy"
    assert not proto.producer_version
    assert not proto.metadata_props
    assert not any(node.doc_string or node.metadata_props for node in proto.graph.node)
    assert not proto.graph.value_info


def test_metadata_is_what_the_caller_gave():
    model = to_onnx(graph_of(conv(), IMAGES), IMAGES, metadata={"license": "CC0"})
    assert [(p.key, p.value) for p in onnx.load_from_string(model).metadata_props] == [("license", "CC0")]


DIGEST = """
    import hashlib, torch
    from tests.export.test_to_onnx import Classifier, IMAGES
    from tests.networks import build, randomise
    torch.manual_seed(0)
    print(hashlib.sha256(build(randomise(Classifier()), IMAGES).model).hexdigest())
"""


def test_the_bytes_are_the_same_in_every_process(classifier):
    """Nor do they depend on Python's hash seed, which orders sets of names."""
    expected = hashlib.sha256(classifier.model).hexdigest()
    torch.manual_seed(0)
    assert hashlib.sha256(build(randomise(Classifier()), IMAGES).model).hexdigest() == expected
    command = [sys.executable, "-c", textwrap.dedent(DIGEST)]
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True, cwd=root
    )
    assert run.stdout.strip() == expected


def test_exporting_again_changes_neither_graph_nor_bytes(classifier):
    before = classifier.graph(IMAGES)
    assert to_onnx(classifier.graph, IMAGES) == classifier.model
    torch.testing.assert_close(classifier.graph(IMAGES), before, rtol=0, atol=0)


def test_exporting_is_silent(capfd):
    build(Residual(), IMAGES)
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------------------- passes


def test_a_shared_module_is_stored_once():
    shared, twice = conv(64, 64), conv(64, 64)
    images = samples(2, 64, 6, 6)
    once = build(Net(lambda m, x: m.a(m.a(x).relu()), a=shared), images)
    both = build(Net(lambda m, x: m.b(m.a(x).relu()), a=shared, b=twice), images)
    assert len(both.model) - len(once.model) > 0.9 * 64 * 64 * 9
    assert [array.shape for array in initializers(once.model).values()].count((64, 64, 3, 3)) == 1
    assert [(layer.name, layer.integer) for layer in once.coverage.layers] == [("a", True), ("a_1", True)]
    check(once)


def test_a_clip_that_no_quantizer_absorbs_clips_codes():
    for run in (
        lambda m, x: m.b(F.hardtanh(m.a(x), -0.3, 0.3)),  # symmetric: the zero point lies between two codes
        lambda m, x: m.b(m.a(x).clamp(0.05, 0.2)),  # does not hold zero
        lambda m, x: m.b(m.a(x).clamp(max=-0.1)),
        lambda m, x: (lambda h: m.b(h.clamp(0.05, 0.2)) + m.b(h))(m.a(x)),  # its input is read by another as well
    ):
        built = build(Net(run, a=conv(), b=conv()), IMAGES)
        check(built, sqnr=25)
        (clip,) = (node for node in graph_proto(built.model).node if node.op_type == "Clip")
        limits = [initializers(built.model)[name] for name in clip.input[1:] if name]
        assert {limit.dtype for limit in limits} == {np.dtype(np.uint8)}
        assert set(built.kernels) <= {"QuantizeLinear", "QLinearConv", "Clip", "DequantizeLinear", "Add"}


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_padding_moves_codes(mode):
    built = build(Net(lambda m, x: m.b(F.pad(m.a(x), (2, 1, 0, 3), mode=mode)), a=conv(), b=conv()), IMAGES)
    assert built.kernels == {"QuantizeLinear": 1, "QLinearConv": 2, "Pad": 1, "DequantizeLinear": 1}
    check(built, sqnr=25)


def test_padding_with_another_value_is_done_in_float32():
    built = build(Net(lambda m, x: m.b(F.pad(m.a(x), (1, 1), value=0.7)), a=conv(), b=conv()), IMAGES)
    assert built.placement.float_layers == {"pad": "it pads with another value than 0"}
    check(built, sqnr=25)


@pytest.mark.parametrize(
    ("layer", "example"),
    [
        (nn.ConvTranspose2d(8, 8, 2, 2), IMAGES),
        (nn.ConvTranspose2d(8, 8, 3, padding=1, groups=2), IMAGES),
        (nn.Conv3d(8, 8, 1), samples(2, 8, 4, 6, 6)),
        (nn.Linear(8, 8), samples(4, 8)),
    ],
    ids=label,
)
def test_float32_weights_between_quantizers_stay_float32(layer, example):
    """onnxruntime would round them to int8 when it loads the model, with one scale for the whole tensor."""
    before = {2: nn.Linear(8, 8), 4: conv(), 5: nn.Conv3d(8, 8, 1)}[example.dim()]
    # A huge weight on a channel that is always zero: with one scale for all, nothing would be left of the others.
    before.weight.data[0] = before.bias.data[0] = 0
    layer.weight.data.transpose(0, 0 if isinstance(layer, nn.ConvTranspose2d) else 1)[0] = 1000
    net = Net(lambda m, x: m.c(m.b(m.a(x)).flatten(1)), a=before, b=layer)
    net.c = nn.Linear(net.b(net.a(example)).flatten(1).shape[1], 3)
    built = build(net, example, keep_float=("b",))
    assert built.sqnr() > 30


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "same", "valid", "groups", "uneven"])
def test_convolutions_keep_their_geometry(name):
    layer, shape = {
        "conv1d": (conv1d(3, 4, 4, stride=3, dilation=2, padding=2), (2, 3, 21)),
        "conv2d": (conv(3, 4, 3, stride=(2, 1), dilation=(1, 2), padding=(0, 2)), (2, 3, 9, 11)),
        "same": (nn.Conv2d(3, 4, (2, 4), padding="same", dilation=(1, 3)), (2, 3, 9, 11)),
        "valid": (nn.Conv2d(3, 4, 3, padding="valid", stride=2), (2, 3, 9, 11)),
        "groups": (conv(4, 8, 3, groups=4), (2, 4, 9, 11)),
        "uneven": (nn.Conv2d(3, 4, (3, 1), padding=(1, 0)), (2, 3, 9, 11)),
    }[name]
    x = samples(*shape)
    model = to_onnx(capture(layer, x), x)
    (value,) = Runtime(model).run({"input": x.numpy()}).values()
    np.testing.assert_allclose(value, layer(x).detach().numpy(), atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda m, x: F.adaptive_avg_pool2d(x, 5), r"average pool of \(8, 8\) to \(5, 5\)"),
        (lambda m, x: F.avg_pool2d(x, 2, divisor_override=3), "divisor_override=3"),
        (lambda m, x: torch.special.i0(x), r"cannot be exported to ONNX: .*bessel_i0"),
        (lambda m, x: x / x.amax(), r"cannot be exported to ONNX: aten\.amax: Required parameter 'dim'"),
    ],
)
def test_what_onnx_cannot_say_is_a_clear_error(run, message):
    with pytest.raises(QDeployError, match=message) as caught:
        to_onnx(graph_of(Net(run), IMAGES), IMAGES)
    assert caught.value.hint
    assert len(caught.value.message) < 300
