"""From calibrated to integer: biases and accumulators that fit, odd weights, and a graph that is the artifact."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import nn

from qdeploy.core import affine, scheme
from qdeploy.core.errors import QDeployError
from qdeploy.quant import ptq
from qdeploy.quant.convert import INT32_MAX, smallest_weight_scale
from qdeploy.quant.placement import place
from qdeploy.quant.quantizer import ActivationQuantizer
from qdeploy.runtimes.onnxruntime import Runtime
from qdeploy.verify.artifact import expose
from tests.networks import Built, Net, build, check, conv, graph_of, operators, samples

IMAGES = samples(4, 8, 8, 8)


def constants(built: Built) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in onnx.load_from_string(built.model).graph.initializer}


# ----------------------------------------------------------------------------------------------- biases, accumulators


@pytest.mark.parametrize("bias", [10.0, 1e4, 1e8, 1e15, -1e15])
@pytest.mark.parametrize("weight", [1.0, 1e-4, 1e-9])
def test_a_bias_that_overflows_raises_the_weight_scale(bias, weight):
    torch.manual_seed(0)
    net = nn.Sequential(conv(), nn.ReLU(), conv())
    net[0].weight.data *= weight
    net[0].bias.data *= weight
    net[0].bias.data[2] = bias
    built = build(net, IMAGES, portable=False)
    codes = constants(built)["0.bias"]
    assert codes.dtype == np.int32
    layer = built.placement.layers[0]
    weights = layer.weight.codes.numpy()
    reach = affine.accumulator_bound(weights, codes, int(layer.input.zero_point), layer.input.scheme)
    assert reach <= INT32_MAX
    # The bias means what it meant, to half a step of its scale.
    steps = (layer.input.scale.numpy() * layer.weight.scale.numpy()).astype(np.float64)
    np.testing.assert_allclose(codes[2] * steps[2], bias, rtol=1e-6, atol=0.501 * steps[2])
    assert built.parity().differing_codes == 0
    # Only the channel that needs it gives up resolution.
    if abs(bias) > 1e4 * weight:
        assert np.abs(weights[2]).max() < 127
    assert (np.abs(np.delete(weights, 2, axis=0)).reshape(7, -1).max(axis=1) == 127).all()


def test_the_smallest_scale_keeps_bias_and_products_in_int32():
    products = np.array([0, 10**6, 2**30])
    bias = np.array([1.0, -1e6, 1e6], np.float32)
    for x_scale in (1e-30, 1e-3, 1e3):
        scale = smallest_weight_scale(bias, x_scale, products).astype(np.float64)
        assert (np.abs(bias) / (x_scale * scale) + products <= INT32_MAX).all()
        assert (x_scale * scale >= affine.SMALLEST_SCALE * 0.999).all()  # a product of scales that float32 holds


def test_products_that_overflow_alone_are_refused():
    with pytest.raises(QDeployError, match="overflow int32") as caught:
        smallest_weight_scale(None, 1.0, np.array([2**31]))
    assert "weight bits" in caught.value.hint


@pytest.mark.parametrize("magnitude", [1e-38, 1e-20, 1e20, 1e30])
def test_activations_of_any_magnitude(magnitude):
    net = nn.Sequential(conv(bias=False), nn.ReLU(), conv(bias=False))
    example = IMAGES * magnitude
    built = build(net, example)
    assert built.parity().differing_codes == 0
    assert all(np.isfinite(value).all() for value in built.run())
    if magnitude > 1e-30:
        assert built.sqnr() > 25


# ----------------------------------------------------------------------------------------------------- odd weights


def test_all_zero_weights():
    net = nn.Sequential(conv(), nn.ReLU(), conv(), nn.Flatten(), nn.Linear(512, 3))
    for module in (net[0], net[4]):
        nn.init.zeros_(module.weight)
    built = build(net, IMAGES)
    assert not constants(built)["0.weight"].any()
    check(built)


def test_a_zero_channel_keeps_its_bias():
    net = nn.Sequential(conv(), nn.ReLU(), conv())
    net[0].weight.data[3] = 0
    net[0].bias.data[3] = 0.7
    check(build(net, IMAGES), sqnr=30)


def test_constant_and_empty_ranges():
    """A channel that is always zero, a value that never changes, an activation that a ReLU kills."""
    net = Net(lambda m, x: m.c(m.b(m.a(x).relu()) * 0 + 1), a=conv(), b=conv(), c=conv())
    net.a.bias.data -= 100
    built = build(net, IMAGES)
    assert built.parity().differing_codes == 0
    assert built.sqnr() > 25


def test_weights_that_folding_made_infinite_are_named():
    net = nn.Sequential(conv(), nn.ReLU(), conv(), nn.BatchNorm2d(8, eps=0.0))
    net[3].running_var[1] = 0
    with pytest.raises(QDeployError, match=r"'2'.*infinite"):
        build(net.eval(), IMAGES)


def test_nan_in_calibration_data_is_named():
    net = Net(lambda m, x: m.b(torch.log(m.a(x))), a=conv(), b=conv())
    with pytest.raises(QDeployError, match=r"Calibrating 'log'.*NaN"):
        build(net, IMAGES)
    broken = IMAGES.clone()
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(QDeployError, match=r"Calibrating 'input'.*1 NaN"):
        build(nn.Sequential(conv()), broken)


def test_no_calibration_data_is_an_error():
    graph = graph_of(conv(), IMAGES)
    with pytest.raises(QDeployError, match="Calibrating 'input'"):
        ptq.quantize(graph, place(graph), [])


# --------------------------------------------------------------------------------------------------------------- clips


@pytest.mark.parametrize(
    ("low", "high", "range_low", "range_high", "absorbed"),
    [
        (0.0, np.inf, 0.0, 5.0, True),
        (0.0, 6.0, 0.0, 6.0, True),
        (0.0, 6.0, 0.0, 4.0, True),  # the quantizer saturates below the clip's limit
        (0.0, 6.0, 0.0, 6.2, False),
        (-1.0, 1.0, -1.0, 1.0, False),  # 0 lies between two codes: the lowest one is below -1
        (-1.0, 1.0, -0.9, 0.9, True),
        (0.1, 0.2, 0.1, 0.2, False),
        (-np.inf, np.inf, -3.0, 2.0, True),
    ],
)
def test_a_quantizer_saturates_like_a_clip_exactly_if_every_value_gets_the_same_code(
    low, high, range_low, range_high, absorbed
):
    quantizer = ActivationQuantizer("x", scheme.activation())
    quantizer.set_range(range_low, range_high)
    assert quantizer.saturates_like(low, high) is absorbed
    x = torch.cat([torch.linspace(-8, 8, 100_001), torch.tensor([-1e30, 1e30, low, high])])
    alone, clipped = quantizer(x), quantizer(x.clamp(low, high))
    assert torch.equal(alone, clipped) is absorbed


def test_a_converted_graph_has_no_clip_that_a_quantizer_absorbs():
    built = build(Net(lambda m, x: m.b(F.relu6(m.a(x).relu())), a=conv(), b=conv()), IMAGES)
    assert not {"relu", "relu6"} & set(operators(built.graph))
    assert not [name for name, _ in built.graph.named_parameters()]  # float weights are gone as well


# ---------------------------------------------------------------------------------------- the graph is the artifact


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(), conv(groups=2), conv(16, 8, 1)

    def forward(self, x):
        h = F.relu6(self.a(x))
        return torch.cat([F.max_pool2d(self.b(h) + h, 2), F.avg_pool2d(h, 2)], 1)


@pytest.mark.parametrize(("portable", "steps", "share"), [(False, 1, 1e-3), (True, 2, 3e-3)])
def test_the_converted_graph_gives_the_codes_of_the_artifact(portable, steps, share):
    """In PyTorch, before export: every quantizer's codes against those that onnxruntime computes.

    PyTorch adds in float32, so a sum that lies on the border of two codes may fall to the other side: for one output in
    thousands one step, and two where it is requantized with a smaller scale, as in the second model here.
    """
    torch.manual_seed(0)
    block = Block()
    net = nn.Sequential(block, conv(16, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    built = build(net, samples(16, 8, 16, 16), portable=portable)
    proto = onnx.load_from_string(built.model)
    codes = {}

    def keep(name):
        def hook(module, inputs, output):
            # A quantizer that moved values share is called again; the first call is for the value it is named after.
            codes.setdefault(name, (torch.round(output / module.scale) + module.zero_point).numpy())

        return hook

    names = {name for node in proto.graph.node if node.op_type == "QuantizeLinear" for name in node.output}
    for name, quantizer in built.placement.activations.items():
        quantizer.register_forward_hook(keep(f"{name}:codes"))
    with torch.no_grad():
        output = built.graph(*built.example)
    wanted = [name for name in codes if name in names]
    found = Runtime(expose(proto, wanted)).run(built.feeds)
    assert len(wanted) >= 7
    for name in wanted:
        difference = np.abs(codes[name] - found[name].astype(np.float32))
        assert difference.max() <= steps, name
        assert (difference > 0).mean() < share, name
    np.testing.assert_allclose(output.numpy(), found["output"], atol=2 * float(np.abs(found["output"]).max()) / 255)


def test_a_layer_called_in_the_graph_alone_is_exact_in_float64():
    """What the graph holds are codes: dequantized weights over their scale are integers."""
    built = build(nn.Sequential(conv(), nn.ReLU(), conv()), IMAGES)
    for layer in built.placement.layers:
        scale = layer.weight.scale.reshape(-1, 1, 1, 1)
        assert torch.equal(torch.round(layer.weight() / scale), layer.weight.codes.float())
        assert layer.weight.codes.dtype == torch.int8
