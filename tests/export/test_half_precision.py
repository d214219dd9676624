"""float32 models stored in 16 bits: half the file, rounded weights, float32 arithmetic."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from qdeploy.core.errors import QDeployError
from qdeploy.core.records import HalfPrecision
from qdeploy.export.to_onnx import to_onnx
from qdeploy.runtimes.onnxruntime import Runtime, optimized_graph
from tests.networks import Net, build, conv, graph_of, samples

IMAGES = samples(4, 8, 8, 8)
both = pytest.mark.parametrize(
    ("storage", "dtype"), [("float16", torch.float16), ("bfloat16", torch.bfloat16)], ids=["float16", "bfloat16"]
)


def network() -> Net:
    torch.manual_seed(0)
    return Net(
        lambda m, x: m.fc(m.b(m.a(x).relu()).relu().flatten(1)),
        a=conv(8, 64), b=conv(64, 32), fc=nn.Linear(2048, 70),
    ).eval()  # fmt: skip


def types(model: bytes) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in onnx.load_from_string(model).graph.initializer}


@both
def test_answers_are_those_of_rounded_weights(storage, dtype):
    """torch's own rounding is the reference: to nearest, half to even."""
    net = network()
    stored = to_onnx(graph_of(net, IMAGES), IMAGES, storage=storage)
    for parameter in net.parameters():
        if parameter.numel() >= 64:
            parameter.data = parameter.data.to(dtype).float()
    rounded = to_onnx(graph_of(net, IMAGES), IMAGES)
    feeds = {"x": IMAGES.numpy()}
    np.testing.assert_array_equal(Runtime(stored).run(feeds)["output"], Runtime(rounded).run(feeds)["output"])


@both
def test_the_file_is_half_as_large(storage, dtype):
    graph = graph_of(network(), IMAGES)
    whole, half = len(to_onnx(graph, IMAGES)), len(to_onnx(graph, IMAGES, storage=storage))
    assert half < 0.5 * whole + 1024


@both
def test_what_runs_is_float32(storage, dtype):
    graph = graph_of(network(), IMAGES)

    def running(model: bytes) -> list[str]:
        return sorted(node.op_type for node in onnx.load_from_string(optimized_graph(model)).graph.node)

    assert running(to_onnx(graph, IMAGES, storage=storage)) == running(to_onnx(graph, IMAGES))


@both
def test_half_way_values_go_to_the_even_neighbour(storage, dtype):
    net = nn.Linear(8, 8, bias=False)
    step = 2.0**-10 if dtype is torch.float16 else 2.0**-7  # of numbers from 1 to 2
    halves = 1 + (torch.arange(64).reshape(8, 8) + 0.5) * step
    net.weight.data = halves
    model = to_onnx(graph_of(net, samples(2, 8)), samples(2, 8), storage=storage)
    (stored,) = (t for t in onnx.load_from_string(model).graph.initializer if t.name == "weight")
    even = np.rint((halves.numpy() - 1) / step) * step + 1
    np.testing.assert_array_equal(numpy_helper.to_array(stored).astype(np.float32).reshape(8, 8), even)


def test_names_stay_and_small_tensors_stay_float32():
    found = types(to_onnx(graph_of(network(), IMAGES), IMAGES, storage="float16"))
    assert {name for name, kind in found.items() if kind == TensorProto.FLOAT16} == {
        "a.weight", "a.bias", "b.weight", "fc.weight", "fc.bias",
    }  # fmt: skip
    assert found["b.bias"] == TensorProto.FLOAT  # 32 numbers: the Cast would take more than it saves


def test_a_weight_beyond_float16_is_refused_by_name():
    net = network()
    net.b.weight.data[3, 1, 1, 1] = -70000
    with pytest.raises(QDeployError, match=r"'b.weight' holds -70000, which is beyond float16") as caught:
        to_onnx(graph_of(net, IMAGES), IMAGES, storage="float16")
    assert "bfloat16" in caught.value.hint
    model = to_onnx(graph_of(net, IMAGES), IMAGES, storage="bfloat16")
    assert np.isfinite(Runtime(model).run({"x": IMAGES.numpy()})["output"]).all()


def test_the_largest_float16_is_not_beyond_it():
    net = network()
    net.b.weight.data[3, 1, 1, 1] = 65519  # rounds to 65504; 65520 would round to infinity
    to_onnx(graph_of(net, IMAGES), IMAGES, storage="float16")
    net.b.weight.data[3, 1, 1, 1] = 65520
    with pytest.raises(QDeployError, match="beyond float16"):
        to_onnx(graph_of(net, IMAGES), IMAGES, storage="float16")


def test_only_float_layers_of_a_quantized_model_are_rounded():
    net = network()
    built = build(net, IMAGES, keep_float=("b",), storage="float16")
    found = types(built.model)
    assert {name for name, kind in found.items() if kind == TensorProto.FLOAT16} == {"b.weight"}
    assert found["a.weight.scale"] == TensorProto.FLOAT
    assert built.kernels["QLinearConv"] == 1
    assert built.kernels["Conv"] == 1
    assert built.parity().differing_codes == 0


def test_what_became_of_the_values_is_recorded():
    """By torch's own rounding: 1e-8 is 0 in float16 and 1e-6 subnormal; bfloat16 has float32's range."""
    net = network()
    net.b.weight.data[0, 0, 0, :3] = torch.tensor([1e-8, 1e-6, 3e4])
    for storage, dtype, zeros, subnormals in (("float16", torch.float16, 1, 1), ("bfloat16", torch.bfloat16, 0, 0)):
        seen: list[HalfPrecision] = []
        to_onnx(graph_of(net, IMAGES), IMAGES, storage=storage, rounded=seen)
        assert [weight.name for weight in seen] == ["a.weight", "a.bias", "b.weight", "fc.weight", "fc.bias"]
        found = next(weight for weight in seen if weight.name == "b.weight")
        weight = net.b.weight.data.double().flatten()
        stored = net.b.weight.data.to(dtype).double().flatten()
        kept = stored != 0
        error = ((stored - weight).abs()[kept] / weight.abs()[kept]).max()
        assert found.values == weight.numel()
        assert found.relative_error == pytest.approx(float(error))
        assert found.largest == 3e4
        small = int(((stored.abs() < torch.finfo(dtype).tiny) & kept).sum())
        assert (found.zeros, found.subnormals, found.overflows) == (int((~kept).sum()), small, 0)
        assert found.zeros == zeros
        assert found.subnormals >= subnormals


def test_what_is_not_rounded_is_not_recorded():
    seen: list[HalfPrecision] = []
    to_onnx(graph_of(network(), IMAGES), IMAGES, rounded=seen)
    assert seen == []
