"""What every fake quantizer must do, found by looking at the folder; one given by path is held to the same."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qdeploy.core import affine, plugins
from qdeploy.core.errors import NotRepresentableError, QDeployError

BY_PATH = '''
"""A fake quantizer of a user's own: scales that never change."""
from qdeploy.quant.fake_quant._base import ActivationFakeQuant, WeightFakeQuant, initial_scale
from qdeploy.quant.fake_quant._functional import along_axis_0
import torch

class MyWeight(WeightFakeQuant):
    def __init__(self, weight, bits):
        super().__init__(weight, bits)
        self.register_buffer("scale", initial_scale(weight, self.scheme))

    def _steps(self, weight):
        return weight / along_axis_0(self.scale, weight), self.scale

class MyActivation(ActivationFakeQuant):
    def __init__(self, bits, low, high, *, foldable=False):
        super().__init__(bits, low, high)
        self.register_buffer("scale", torch.tensor(self._initial_scale))

    def _scales(self, x):
        return self.scale, self.scale

class FakeQuant:
    Weight = MyWeight
    Activation = MyActivation
'''

# Widths that a method cannot represent: (method, kind, bits) -> what its error must say. Reviewed by hand; a refusal
# that is not here fails, and so does one here that no longer happens.
REFUSALS = {
    ("apot", "weight", 1): "beside the sign there is no bit for a level",
    ("apot", "weight", 7): "up to 448, beyond int8's 127",
    ("apot", "weight", 8): "up to 904, beyond int8's 127",
    ("qil", "weight", 1): "0 levels beside 0",
}

NAMES = [*plugins.names("fake quant"), "by path"]
BITS = range(1, 9)
WIDTHS = [
    pytest.param(name, bits, id=f"{name}-{bits}")
    for name in NAMES
    for bits in BITS
    if (name, "weight", bits) not in REFUSALS
]
RANGES = {"one-sided": (0.0, 2.5), "symmetric": (-2.0, 2.0), "lopsided": (-0.4, 3.0), "negative": (-1.5, 0.0)}


@pytest.fixture(scope="session")
def by_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("fake_quant") / "my_fake_quant.py"
    path.write_text(BY_PATH)
    return str(path)


@pytest.fixture
def load(by_path):
    return lambda name: plugins.load("fake quant", by_path if name == "by path" else name)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def train(module: nn.Module, x: torch.Tensor, steps: int = 5, lr: float = 0.02) -> torch.Tensor:
    """A few steps of SGD on ``x`` and the module's own parameters; returns the trained ``x``."""
    x = nn.Parameter(x.clone())
    optimizer = torch.optim.SGD([x, *module.parameters()], lr=lr, momentum=0.9)
    target = draw(99, *x.shape)
    module.train()
    for epoch in range(1, steps + 1):
        module.start_epoch(epoch, steps)
        optimizer.zero_grad()
        (module(x) - target).square().sum().div(len(x)).backward()
        optimizer.step()
    return x.detach()


def artifact(module, x: torch.Tensor) -> np.ndarray:
    """What QuantizeLinear, Clip and DequantizeLinear make of ``x`` with the module's parameters."""
    p = module.qparams()
    codes = affine.quantize(x.numpy() - p.start, p.scale, np.asarray(p.zero_point), module.scheme)
    return affine.dequantize(codes, p.dequantize_scale, np.asarray(p.zero_point))


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", NAMES)
def test_only_the_declared_widths_are_refused(load, name, bits):
    method = load(name)
    made = {
        "weight": lambda: method.Weight(draw(0, 4, 6), bits),
        "activation": lambda: method.Activation(bits, 0.0, 1.0),
    }
    for kind, make in made.items():
        if (reason := REFUSALS.get((name, kind, bits))) is None:
            assert make().scheme.bits == bits
            continue
        with pytest.raises(NotRepresentableError) as caught:
            make()
        assert "not representable" in caught.value.message
        assert reason in caught.value.message
        assert caught.value.hint


@pytest.mark.parametrize("name", NAMES)
def test_what_no_fake_quantizer_takes(load, name):
    method = load(name)
    for bits in (0, 9, 16):
        with pytest.raises(QDeployError, match=f"{bits} bits"):
            method.Weight(draw(0, 4, 6), bits)
        with pytest.raises(QDeployError, match=f"{bits} bits"):
            method.Activation(bits, 0.0, 1.0)
    for bad in (math.nan, math.inf):
        weight = draw(0, 4, 6)
        module = method.Weight(weight, 4)
        weight[1, 2] = bad
        with pytest.raises(QDeployError, match="NaN"):
            method.Weight(weight, 4)
        with pytest.raises(QDeployError, match="NaN"):
            module.quantized(weight)
    with pytest.raises(QDeployError, match="axis"):
        method.Weight(torch.tensor(1.0), 4)
    for low, high in ((0.5, 1.0), (-1.0, -0.5), (math.nan, 1.0), (0.0, math.inf)):
        with pytest.raises(QDeployError):
            method.Activation(4, low, high)


# --------------------------------------------------------------------------------------------------------- codes


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (5, 17), (8, 1, 3, 3), (7,)], ids=str)
@pytest.mark.parametrize(("name", "bits"), WIDTHS)
def test_weight_codes_are_the_forward_pass_bit_for_bit(load, name, bits, shape):
    weight = draw(bits, *shape) * torch.linspace(0.05, 2, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    module = load(name).Weight(weight, bits)
    assert module.scheme.dtype == np.int8
    for trained in (weight, train(module, weight)):
        quantized = module.eval().quantized(trained)
        real = module(trained).detach().numpy()
        assert quantized.axis == 0
        assert quantized.scheme == module.scheme
        assert not quantized.zero_point.any()
        assert module.scheme.levels <= 2**bits
        assert real.dtype == np.float32
        np.testing.assert_array_equal(quantized.dequantize(), real)
        np.testing.assert_array_equal(module(trained).detach().numpy(), real)


@pytest.mark.parametrize("range_", RANGES, ids=str)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", NAMES)
def test_activation_codes_are_the_forward_pass_bit_for_bit(load, name, bits, range_):
    low, high = RANGES[range_]
    module = load(name).Activation(bits, low, high, foldable=True)
    x = draw(bits, 16, 5, 7) * 1.5
    assert module.scheme.dtype == np.uint8
    for _ in range(2):
        module.eval()
        real = module(x).detach().numpy()
        assert real.dtype == np.float32
        assert len(np.unique(real)) <= 2**bits
        np.testing.assert_array_equal(real, artifact(module, x))
        # Half-way between two codes is where another division or rounding would show.
        p = module.qparams()
        ties = torch.arange(-300, 300).add(0.5).mul(float(p.scale)).add(float(p.start))
        ties = torch.cat([ties, ties.nextafter(torch.tensor(math.inf)), ties.nextafter(torch.tensor(-math.inf))])
        np.testing.assert_array_equal(module(ties).detach().numpy(), artifact(module, ties))
        train(module, x)


@pytest.mark.parametrize("name", NAMES)
def test_one_sided_ranges_have_zero_point_0_and_symmetric_ones_the_middle(load, name):
    for bits in (2, 4, 8):
        assert load(name).Activation(bits, 0.0, 3.0).qparams().zero_point == 0
        # Zero is in the middle of an even number of codes, between two of them: either will do.
        assert load(name).Activation(bits, -3.0, 3.0).qparams().zero_point in (2 ** (bits - 1) - 1, 2 ** (bits - 1))


@pytest.mark.parametrize("name", NAMES)
def test_it_starts_from_the_trained_model(load, name):
    """At 8 bits almost nothing changes before training (at 6, the widest that all methods have, little)."""
    weight = draw(0, 16, 8, 3, 3)
    module = load(name).Weight(weight, 6)
    assert (module(weight) - weight).square().mean() < 0.004 * weight.square().mean()
    for low, high in RANGES.values():
        x = torch.linspace(low, high, 1000)
        module = load(name).Activation(8, low, high, foldable=True)
        assert (module(x) - x).abs().max() <= 0.51 * (high - low) / 255 * 1.02


# ----------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize(("name", "bits"), WIDTHS)
def test_gradients_of_weights_are_finite_and_reach_everything(load, name, bits):
    weight = draw(1, 8, 6, 3, 3).mul(0.1).requires_grad_()
    module = load(name).Weight(weight, bits)
    (module(weight) * draw(2, *weight.shape)).sum().backward()
    for tensor in (weight, *module.parameters()):
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.any()


@pytest.mark.parametrize("range_", RANGES, ids=str)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_activations_are_finite_and_reach_everything(load, name, bits, range_):
    module = load(name).Activation(bits, *RANGES[range_], foldable=True)
    x = (draw(1, 8, 6, 3, 3) * 2).requires_grad_()
    (module(x) * draw(2, *x.shape)).sum().backward()
    for tensor in (x, *module.parameters()):
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_do_not_depend_on_the_memory_format(load, name):
    module = load(name).Activation(4, 0.0, 2.0, foldable=True)
    x, incoming = draw(3, 4, 6, 5, 5), draw(4, 4, 6, 5, 5)
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        module.zero_grad()
        leaf = x.clone(memory_format=memory_format).requires_grad_()
        module(leaf).backward(incoming)
        found.append([leaf.grad, *(p.grad.clone() for p in module.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [4, 2])
def test_a_small_net_learns(load, name, bits):
    """A regression that a net with rounded weights and activations fits less well before training than after."""
    torch.manual_seed(0)
    x = draw(5, 256, 8)
    target = torch.tanh(x @ draw(6, 8, 4)) + 0.5 * x[:, :4].relu()
    first, second = nn.Linear(8, 32), nn.Linear(32, 4)
    method = load(name)
    parts = nn.ModuleList([
        method.Weight(first.weight, bits), method.Weight(second.weight, bits), method.Activation(bits, 0.0, 1.5)
    ])  # fmt: skip
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters(), *parts.parameters()], lr=0.05, momentum=0.9)
    losses = []
    for epoch in range(1, 61):
        for part in parts:
            part.start_epoch(epoch, 60)
        hidden = parts[2](F.linear(x, parts[0](first.weight), first.bias).relu())
        loss = F.mse_loss(F.linear(hidden, parts[1](second.weight), second.bias), target)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]


# ------------------------------------------------------------------------------------------------- odd tensors


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("name", NAMES)
def test_scalars_and_empty_activations(load, name, bits):
    module = load(name).Activation(bits, -1.0, 1.0)
    for x in (torch.tensor(0.3), torch.zeros(0), torch.zeros(0, 3, 4, 4), torch.zeros(3, 0)):
        for training in (True, False):
            leaf = x.clone().requires_grad_()
            y = module.train(training)(leaf)
            assert y.shape == x.shape
            y.sum().backward()
            assert all(torch.isfinite(p.grad).all() for p in (leaf, *module.parameters()))
    np.testing.assert_array_equal(module(torch.tensor(0.3)).detach().numpy(), artifact(module, torch.tensor(0.3)))


@pytest.mark.parametrize("name", NAMES)
def test_an_activation_that_is_always_zero(load, name):
    module = load(name).Activation(4, 0.0, 0.0)
    for _ in range(3):
        x = torch.zeros(4, 3, requires_grad=True)
        module(x).sum().backward()
        assert not module(x).any()
    assert np.isfinite(module.qparams().scale)


@pytest.mark.parametrize(("name", "bits"), WIDTHS)
def test_constant_and_empty_weights(load, name, bits):
    for weight in (torch.zeros(3, 4), torch.full((3, 4), 0.25), torch.zeros(0, 4), torch.zeros(3, 0)):
        module = load(name).Weight(weight, bits)
        leaf = weight.clone().requires_grad_()
        real = module(leaf)
        np.testing.assert_array_equal(module.quantized(leaf).dequantize(), real.detach().numpy())
        real.sum().backward()
        assert torch.isfinite(leaf.grad).all()
        assert all(torch.isfinite(p.grad).all() for p in module.parameters())


@pytest.mark.parametrize(("name", "bits"), WIDTHS)
def test_a_channel_of_zeros_disturbs_no_other(load, name, bits):
    weight = draw(7, 5, 32)
    weight[2] = 0.0
    module = load(name).Weight(weight, bits)
    quantized = module.quantized(weight)
    assert np.abs(quantized.dequantize()[2]).max() <= 1e-4
    others = [0, 1, 3, 4]
    alone = load(name).Weight(weight[others], bits).quantized(weight[others])
    if name not in ("apot", "pact"):  # whose statistics are those of a layer
        np.testing.assert_array_equal(quantized.codes[others], alone.codes)


# -------------------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", NAMES)
def test_state_is_saved_and_loaded(load, name, training):
    """What is loaded quantizes alike and goes on alike, whatever it was made from."""
    method = load(name)
    weight, x = draw(8, 6, 10), draw(9, 32, 10)
    for make, value in (
        (lambda w=weight: method.Weight(w, 3), weight),
        (lambda: method.Activation(3, -0.3, 2.0, foldable=True), x),
        (lambda: method.Activation(3, 0.0, 2.0, foldable=True), x.relu()),
    ):
        module = make()
        train(module, value, steps=8)
        other = method.Weight(draw(10, 6, 10), 3) if value is weight else method.Activation(3, *(
            (-5.0, 0.5) if (value < 0).any() else (0.0, 7.0)
        ), foldable=True)  # fmt: skip
        other.load_state_dict(module.state_dict())
        for copied in (other, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            kept = copy.deepcopy(module)
            for _ in range(3):
                np.testing.assert_array_equal(
                    copied.train(training)(value).detach().numpy(), kept.train(training)(value).detach().numpy()
                )


@pytest.mark.parametrize("name", NAMES)
def test_the_same_training_gives_the_same_bits(load, name):
    weight, x = draw(11, 6, 10), draw(12, 32, 10)
    runs = []
    for _ in range(2):
        modules = load(name).Weight(weight, 4), load(name).Activation(4, -1.0, 2.0)
        trained = [train(module, value) for module, value in zip(modules, (weight, x), strict=True)]
        runs.append([m(t).detach().numpy() for m, t in zip(modules, trained, strict=True)])
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_scales_stay_positive_whatever_an_optimizer_does(load, name):
    for module, x in (
        (load(name).Weight(draw(13, 4, 8), 4), draw(13, 4, 8)),
        (load(name).Activation(4, 0.0, 2.0), draw(14, 8, 8)),
    ):
        with torch.no_grad():
            for factor in (-1.0, 0.0):
                for parameter in module.parameters():
                    parameter.mul_(factor)
                assert torch.isfinite(module(x)).all()
                if hasattr(module, "qparams"):
                    assert module.qparams().scale > 0
                else:
                    assert (module.quantized(x).scale > 0).all()


def test_everything_is_a_plugin_with_a_summary():
    for name in plugins.names("fake quant"):
        assert plugins.summary("fake quant", name).endswith(".")


@pytest.mark.parametrize("name", [n for n in plugins.names("fake quant") if (n, "weight", 8) not in REFUSALS])
def test_flat_weights_at_8_bits_are_nearly_exact(load, name):
    weight = torch.rand(8, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    error = load(name).Weight(weight, 8)(weight) - weight
    assert error.square().mean().sqrt() < 0.02 * weight.square().mean().sqrt()
