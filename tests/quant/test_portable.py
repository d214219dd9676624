"""Weights that keep the pair rule, at the least cost in output error; scales at which additions agree."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from qdeploy.core import saturation
from qdeploy.core import scheme as schemes
from qdeploy.core.elementwise import Operand, disagreements
from qdeploy.core.scheme import QScheme
from qdeploy.export import artifact
from qdeploy.quant.codes import nearest_codes
from qdeploy.quant.pairs import codes_below, limit_pairs, widening
from qdeploy.quant.portable import breaks, constrain
from qdeploy.quant.rounding import nearest
from qdeploy.verify.portability import portability

LIMIT = saturation.pair_limit(255)
SCHEME = schemes.weight(8)
RNG = np.random.default_rng(0)


def rounded(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minmax scales and nearest codes."""
    scale = (np.abs(weight).reshape(len(weight), -1).max(axis=1) / 127).astype(np.float32)
    return nearest.round_weight(weight, scale, SCHEME), scale


def error(weight: np.ndarray, codes: np.ndarray, scale: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Of each channel's output."""
    rows = weight.reshape(len(weight), -1) - codes.reshape(len(weight), -1) * scale[:, None].astype(np.float64)
    return np.einsum("rk,kl,rl->r", rows, moment, rows)


def inputs(size: int) -> np.ndarray:
    """The second moment of correlated, non-negative inputs."""
    x = np.abs(RNG.normal(size=(2000, size)) @ RNG.normal(size=(size, size)))
    return x.T @ x / len(x)


SHAPES = [(40, 6, 3, 3), (40, 3, 3, 3), (40, 5, 2, 2), (40, 1, 3, 3), (40, 7), (40, 8), (40, 3, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", [SCHEME, QScheme(8, signed=True), schemes.weight(7, grid="midrise")])
def test_limited_codes_keep_the_rule_and_are_of_the_scheme(scheme, shape):
    steps = torch.from_numpy(RNG.normal(0, 80, shape))
    codes = torch.from_numpy(nearest_codes(steps.numpy(), scheme))
    found = limit_pairs(codes, steps, scheme, LIMIT)
    assert found.shape == codes.shape
    assert breaks(codes.numpy(), LIMIT)
    assert not breaks(found.numpy(), LIMIT)
    assert scheme.contains(found.numpy().astype(np.int8))
    keeps = saturation.pair_sums(codes.numpy().astype(np.int64)) <= LIMIT
    pairs = saturation.pair_indices(tuple(codes.shape))
    # Behind the last weight a 0, which is what a weight without a partner is added to.
    flat, before = (np.pad(values.flatten(1).numpy(), ((0, 0), (0, 1))) for values in (found, codes))
    for pair, kept in zip(pairs, keeps.T, strict=True):
        np.testing.assert_array_equal(flat[kept][:, pair], before[kept][:, pair])
        assert (flat[~kept][:, pair] != before[~kept][:, pair]).any(axis=1).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_widened_steps_come_within_the_limit_and_no_further(shape):
    """Judged by core/saturation.py, which knows the pairs by their indices."""
    steps = torch.from_numpy(RNG.normal(0, 40, shape) * np.linspace(0.1, 2, 40).reshape(-1, *[1] * (len(shape) - 1)))
    factor = widening(steps, SCHEME, LIMIT)
    reachable = np.pad(steps.clamp(SCHEME.qmin, SCHEME.qmax).flatten(1).numpy(), ((0, 0), (0, 1)))
    pairs = reachable[:, saturation.pair_indices(shape)]
    largest = np.maximum(*(np.maximum(signed, 0).sum(-1) for signed in (pairs, -pairs))).max(1)
    np.testing.assert_allclose(factor.numpy(), np.maximum(largest / LIMIT, 1.0), rtol=1e-12)
    assert factor.min() == 1
    assert factor.max() > 1


def test_a_limited_pair_is_the_nearest_one_that_fits():
    every = np.arange(1, 128)
    a, b = np.meshgrid(every, every)
    fits = a + b <= LIMIT
    for wanted in RNG.uniform(40, 127, (50, 2)):
        steps = torch.from_numpy(wanted[None])
        found = limit_pairs(steps.round(), steps, SCHEME, LIMIT).numpy()[0]
        distance = (a - wanted[0]) ** 2 + (b - wanted[1]) ** 2
        best = distance[fits].min()
        assert (found - wanted) @ (found - wanted) == pytest.approx(best, abs=1.0)


def test_codes_below():
    assert codes_below(schemes.weight(7, grid="midrise"), 4) == [1, 1, 1, 3, 3]
    assert codes_below(SCHEME, 3) == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", [(32, 8, 3, 3), (32, 7, 1, 1), (16, 64)])
def test_constrained_weights_keep_the_rule_and_cost_less_than_either_remedy_alone(shape):
    weight = RNG.standard_t(4, shape).astype(np.float32)
    codes, scale = rounded(weight)
    moment = inputs(int(np.prod(shape[1:])))
    found, wider = constrain(weight, codes, scale, SCHEME, LIMIT, moment)
    assert breaks(codes, LIMIT)
    assert not breaks(found, LIMIT)
    cost = error(weight, found, wider, moment).sum()
    halved = nearest.round_weight(weight, 2 * scale, SCHEME)  # reduce_range: 7 bits
    wanted = torch.from_numpy(codes).double()
    cut = limit_pairs(wanted, wanted, SCHEME, LIMIT).numpy()
    assert not breaks(cut, LIMIT)
    assert cost < error(weight, halved, 2 * scale, moment).sum()
    assert cost < error(weight, cut, scale, moment).sum()


def test_without_moments_a_wide_layer_takes_the_memory_of_its_weights():
    """A matrix of 25,088 by 25,088, the weights of VGG's first linear layer, would be 5 GB."""
    weight = RNG.standard_t(4, (4, 25_088)).astype(np.float32)
    codes, scale = rounded(weight)
    tracemalloc.start()
    found, wider = constrain(weight, codes, scale, SCHEME, LIMIT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * weight.nbytes
    assert not breaks(found, LIMIT)
    halved = nearest.round_weight(weight, 2 * scale, SCHEME)
    assert np.square(weight - found * wider[:, None]).sum() < np.square(weight - halved * 2 * scale[:, None]).sum()


def test_a_channel_that_keeps_the_rule_stays_as_it_is():
    weight = RNG.standard_t(4, (32, 8, 3, 3)).astype(np.float32)
    weight[:16] = np.clip(weight[:16], -0.3, 0.3)
    weight[:16, 1, 0, 0] = 0.0
    weight[:16, 0, 0, 0] = 1.0  # one large weight sets the scale
    codes, scale = rounded(weight)
    keeps = (saturation.pair_sums(codes) <= LIMIT).all(axis=1)
    assert keeps[:16].all()
    found, wider = constrain(weight, codes, scale, SCHEME, LIMIT, inputs(72))
    np.testing.assert_array_equal(found[keeps], codes[keeps])
    np.testing.assert_array_equal(wider[keeps], scale[keeps])


def test_grouped_channels_are_judged_by_their_own_inputs():
    weight = RNG.standard_t(4, (8, 4, 3, 3)).astype(np.float32)
    codes, scale = rounded(weight)
    moments = np.stack([inputs(36), inputs(36)])
    found, wider = constrain(weight, codes, scale, SCHEME, LIMIT, moments)
    first = constrain(weight[:4], codes[:4], scale[:4], SCHEME, LIMIT, moments[:1])
    np.testing.assert_array_equal(found[:4], first[0])
    np.testing.assert_array_equal(wider[:4], first[1])


class Residual(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.second = torch.nn.Conv2d(16, 16, 3, padding=1)
        self.third = torch.nn.Conv2d(16, 16, 3, padding=1)
        self.gate = torch.nn.Conv2d(16, 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.second(x))
        return self.third(x * torch.sigmoid(self.gate(x)))


@pytest.mark.parametrize("options", [{}, {"learn_ranges": True}, {"rounding": "gptq"}, {"bias_correction": True}])
def test_a_portable_artifact_is_proven(options):
    batches = [torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    model, example = Residual().eval(), batches[0][:2]
    full = portability(artifact.quantized(model, example, batches, portable=False, **options).model)
    assert {layer.name for layer in full.saturation} >= {"second", "third"}
    found = portability(artifact.quantized(model, example, batches, **options).model)
    assert found.saturation == ()
    assert found.arithmetic == ()


@pytest.mark.parametrize(("fake_quant", "bits"), [("ste", 8), ("lsq", 8), ("pact", 8), ("qil", 8), ("apot", 6)])
def test_trained_codes_are_the_portable_ones_that_ship(fake_quant, bits):
    """APoT's levels of 6 bits are codes of up to 100."""
    batches = [torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    model, example = Residual().eval(), batches[0][:2]
    made = artifact.placed(model, example, weight_bits=bits)
    graph = artifact.trainable(made, batches, fake_quant=fake_quant)
    graph.train()
    graph(batches[0]).square().mean().backward()
    graph.eval()
    layers = {layer.name: layer for layer in made.placement.layers}
    fake = layers["second"].weight.fake
    weight = dict(graph.named_parameters())["second.weight"]
    quantized = fake.quantized(weight.detach())
    assert not breaks(quantized.codes, LIMIT)
    expected = quantized.codes * quantized.scale[:, None, None, None]
    np.testing.assert_array_equal(fake(weight).detach().numpy(), expected)
    assert weight.grad is not None
    found = portability(artifact.trained(graph, made, example).model)
    assert found.saturation == ()
    assert found.arithmetic == ()


def test_the_scale_of_an_addition_grows_by_less_than_a_fifth_of_a_per_cent():
    batches = [torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    model, example = Residual().eval(), batches[0][:2]
    made = [artifact.placed(model, example) for _ in range(2)]
    from qdeploy.quant import ptq

    for placed, portable in zip(made, (False, True), strict=True):
        ptq.quantize(placed.graph, placed.placement, batches, portable=portable)
    before, after = (
        {name: float(quantizer.scale) for name, quantizer in placed.placement.activations.items()} for placed in made
    )
    ratios = {name: after[name] / before[name] for name in before}
    assert max(ratios.values()) <= 1.0019
    assert min(ratios.values()) >= 1.0


def test_an_addition_of_equal_scales_is_moved_off_its_ties():
    """Half of a sum is a tie for every other pair of codes: the worst case there is."""
    operand, uint8 = Operand(0.5, 0, schemes.activation()), schemes.activation()
    assert disagreements("Add", operand, operand, Operand(1.0, 0, uint8)) > 10_000
    assert disagreements("Add", operand, operand, Operand(float(np.float32(1.0 + 2e-5)), 0, uint8)) == 0
