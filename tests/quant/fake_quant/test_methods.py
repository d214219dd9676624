"""Each method does what its paper says: hand-worked cases, the papers' sets and formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qdeploy.quant.fake_quant import apot, lsq, pact, qil, ste
from qdeploy.quant.fake_quant._sawb import coefficients


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def learned(module, name: str, value) -> None:
    """Set a learned parameter."""
    with torch.no_grad():
        getattr(module, name).copy_(torch.as_tensor(value))


# ----------------------------------------------------------------------------------------------------------- lsq


def test_lsq_activation_by_hand():
    """Esser 2020, eq. 3 and section 2.2, at 2 bits and a step of 0.5: v = x / s = -1, 0.6, 1.6, 3.2."""
    module = lsq.FakeQuant.Activation(2, 0.0, 1.5)
    assert float(module.step.detach()) == 0.5
    x = torch.tensor([[-0.5, 0.3, 0.8, 1.6]], requires_grad=True)
    y = module(x)
    assert y.tolist() == [[0.0, 0.5, 1.0, 1.5]]
    y.backward(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
    assert x.grad.tolist() == [[0, 10, 100, 0]]
    by_value = [0.0, 1 - 0.6, 2 - 1.6, 3.0]
    expected = sum(g * d for g, d in zip((1, 10, 100, 1000), by_value, strict=True)) / math.sqrt(4 * 3)
    assert float(module.step.grad) == pytest.approx(expected, rel=1e-5)


def test_lsq_gradient_scale_counts_the_features_of_a_sample():
    """More samples with the same gradients sum to more; the scale does not change with the batch."""
    gradients = []
    for samples in (1, 3):
        module = lsq.FakeQuant.Activation(4, 0.0, 1.5)
        module(draw(0, 1, 4, 5, 5).expand(samples, -1, -1, -1)).sum().backward()
        gradients.append(float(module.step.grad))
    assert gradients[1] == pytest.approx(3 * gradients[0], rel=1e-4)


def test_lsq_weight_by_hand():
    """Steps 0.5 and 2, at 3 bits: Qn = 4, Qp = 3, N = 4 weights a channel."""
    weight = torch.tensor([[-5.0, 0.3, 0.8, 1.6], [-1.2, 0.0, 5.0, 90.0]], requires_grad=True)
    module = lsq.FakeQuant.Weight(weight, 3)
    learned(module, "step", [0.5, 2.0])
    y = module(weight)
    assert y.tolist() == [[-2.0, 0.5, 1.0, 1.5], [-2.0, 0.0, 4.0, 6.0]]
    y.backward(torch.ones(2, 4))
    assert weight.grad.tolist() == [[0, 1, 1, 0], [1, 1, 1, 0]]
    expected = torch.tensor([-4 + (1 - 0.6) + (2 - 1.6) + 3, (-1 + 0.6) + 0 + (2 - 2.5) + 3]) / math.sqrt(4 * 3)
    torch.testing.assert_close(module.step.grad, expected)


def test_lsq_uses_the_paper_s_codes():
    module = lsq.FakeQuant.Weight(draw(1, 4, 50), 4)
    assert (module.scheme.qmin, module.scheme.qmax) == (-8, 7)
    assert lsq.FakeQuant.Weight(draw(1, 4, 50), 1).scheme.codebook == (-1, 1)


def test_lsq_starts_nearer_to_the_weights_than_the_paper_s_formula():
    weight = draw(2, 16, 200)
    for bits in (2, 3, 4, 8):
        module = lsq.FakeQuant.Weight(weight, bits)
        ours = (module(weight) - weight).square().mean()
        learned(module, "step", 2 * weight.abs().mean(dim=1) / math.sqrt(module.scheme.qmax))
        assert ours < (module(weight) - weight).square().mean()


# ---------------------------------------------------------------------------------------------------------- pact


def test_pact_by_hand():
    """Choi 2018, eq. 1-3, at 2 bits and alpha = 1.5: the gradient of alpha is that of what is clipped, in full."""
    module = pact.FakeQuant.Activation(2, 0.0, 1.5)
    assert float(module.alpha.detach()) == 1.5
    x = torch.tensor([-0.5, 0.3, 0.8, 1.6, 7.0], requires_grad=True)
    y = module(x)
    assert y.tolist() == [0.0, 0.5, 1.0, 1.5, 1.5]
    y.backward(torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0]))
    assert x.grad.tolist() == [0, 10, 100, 0, 0]
    assert float(module.alpha.grad) == pytest.approx(11000)
    assert module.decays
    assert not any(m.decays for m in (pact.FakeQuant.Weight, *(f.FakeQuant.Activation for f in (lsq, ste, apot, qil))))


def test_pact_on_a_two_sided_tensor_moves_both_ends():
    module = pact.FakeQuant.Activation(4, -1.6, 1.4)
    assert module.qparams().zero_point == 8
    x = torch.tensor([-9.0, 0.5, 9.0], requires_grad=True)
    module(x).backward(torch.tensor([-1.0, 5.0, 1.0]))
    assert float(module.alpha.grad) == pytest.approx(1 + 8 / 7)


def test_sawb_coefficients():
    """The paper has 3.2 and 2.1 for its 4 levels of 2 bits. With 2 levels the best value is E[|w|], exactly."""
    c1, c2 = coefficients(4)
    assert c1 == pytest.approx(3.2, abs=0.1)
    assert c2 == pytest.approx(2.1, abs=0.1)
    assert coefficients(2) == pytest.approx((0.0, -1.0), abs=1e-3)


@pytest.mark.parametrize(("bits", "factor"), [(2, 1.05), (3, 1.05), (4, 1.05), (5, 1.1), (8, 1.6)])
def test_sawb_is_near_the_best_clipping_of_a_gaussian(bits, factor):
    """The squared error against that of the best scale. One line through six distributions fits wide codes less."""
    weight = draw(3, 4, 20000) * torch.tensor([[0.01], [0.1], [1.0], [10.0]])
    module = pact.FakeQuant.Weight(weight, bits)

    def error(real):
        return float(((real - weight).square().mean(dim=1) / weight.square().mean(dim=1)).mean())

    scale, qmax = torch.from_numpy(module.quantized(weight).scale)[:, None], module.scheme.qmax
    others = [scale * float(f) for f in np.geomspace(0.5, 2.0, 41)]
    assert error(module(weight)) <= factor * min(error((weight / s).round().clamp(-qmax, qmax) * s) for s in others)


def test_sawb_follows_the_weights():
    weight = draw(4, 4, 100)
    module = pact.FakeQuant.Weight(weight, 4)
    np.testing.assert_array_equal(module.quantized(weight).codes, module.quantized(weight * 2).codes)
    torch.testing.assert_close(module(weight * 2), module(weight) * 2)


# ---------------------------------------------------------------------------------------------------------- apot


def test_apot_levels_are_the_paper_s():
    """The terms of a level, as the paper lists them, over the smallest power of two among them."""

    def sums(*terms):
        levels = {sum(chosen) for chosen in np.array(np.meshgrid(*terms)).T.reshape(-1, len(terms))}
        return tuple(sorted(round(float(level)) for level in levels))

    assert apot.magnitudes(1) == (0, 1)
    assert apot.magnitudes(2) == sums([0, 4, 2, 1]) == (0, 1, 2, 4)
    # 3 bits: 0, 1, 1/2, 1/8 and 0, 1/4; 4 bits: 0, 1, 1/4, 1/16 and 0, 1/2, 1/8, 1/32 (the paper's example).
    assert apot.magnitudes(3) == sums(8 * np.array([0, 1, 1 / 2, 1 / 8]), 8 * np.array([0, 1 / 4]))
    assert apot.magnitudes(3) == (0, 1, 2, 3, 4, 6, 8, 10)
    assert apot.magnitudes(4) == sums(
        32 * np.array([0, 1, 1 / 4, 1 / 16]), 32 * np.array([0, 1 / 2, 1 / 8, 1 / 32])
    )  # fmt: skip
    assert apot.magnitudes(4)[-3:] == (33, 36, 48)
    for bits in range(1, 8):
        assert len(apot.magnitudes(bits)) == 2**bits


def test_apot_codebooks_have_a_sign():
    assert apot.FakeQuant.Weight(draw(5, 4, 8), 2).scheme.codebook == (-1, 0, 1)
    assert apot.FakeQuant.Weight(draw(5, 4, 8), 4).scheme.codebook == (
        *(-10, -8, -6, -4, -3, -2, -1), 0, 1, 2, 3, 4, 6, 8, 10
    )  # fmt: skip
    assert apot.FakeQuant.Weight(draw(5, 4, 8), 5).scheme.qmax == 48
    assert apot.FakeQuant.Weight(draw(5, 4, 8), 6).scheme.qmax == 100


def test_apot_normalises_and_restores():
    """Codes do not change when a layer's weights are scaled; values scale with them."""
    weight = draw(6, 4, 64)
    module = apot.FakeQuant.Weight(weight, 4)
    plain, scaled = module.quantized(weight), module.quantized(weight * 4)
    np.testing.assert_array_equal(plain.codes, scaled.codes)
    np.testing.assert_allclose(scaled.scale, 4 * plain.scale, rtol=1e-6)


def test_apot_clipping_gradient():
    """The reparameterized clipping function: d/d alpha is the sign where clipped, and level - w / alpha elsewhere."""
    weight = torch.tensor([[-2.0, -0.3, 0.3, 2.0]]).requires_grad_()  # mean 0
    module = apot.FakeQuant.Weight(weight.detach(), 4)
    deviation = float(weight.detach().std(correction=0))
    learned(module, "alpha", [1.0])
    module(weight).backward(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
    v = 0.3 / deviation  # of alpha, with levels in tenths
    level = min((m / 10 for m in apot.magnitudes(3)), key=lambda m: abs(m - v))
    expected = deviation * (-1 - 10 * (level - v) + 100 * (level - v) + 1000)
    assert float(module.alpha.grad) == pytest.approx(expected, rel=1e-5)
    assert weight.grad.tolist() == [[0, 10, 100, 0]]


# ----------------------------------------------------------------------------------------------------------- qil


def test_qil_transformer_is_eq_3():
    """alpha = 0.5 / d, beta = -0.5 c / d + 0.5, gamma = 1, case by case."""
    weight = torch.cat([draw(7, 3, 40), torch.tensor([[0.3, 0.9, 0.6]] * 3)], dim=1)
    module = qil.FakeQuant.Weight(weight, 4)
    learned(module, "center", [0.6, 0.5, 0.4])
    learned(module, "distance", [0.3, 0.5, 0.7])
    found = module.transform(weight).detach()
    for row, values, c, d in zip(found, weight, (0.6, 0.5, 0.4), (0.3, 0.5, 0.7), strict=True):
        for got, w in zip(row.tolist(), values.tolist(), strict=True):
            if abs(w) < c - d:
                expected = 0.0
            elif abs(w) > c + d:
                expected = math.copysign(1, w)
            else:
                expected = (0.5 / d * abs(w) - 0.5 * c / d + 0.5) * math.copysign(1, w)
            assert got == pytest.approx(expected, abs=1e-6)


def test_qil_prunes_what_lies_below_the_interval():
    weight = draw(8, 4, 100)
    module = qil.FakeQuant.Weight(weight, 4)
    learned(module, "center", torch.full((4,), 1.0))
    learned(module, "distance", torch.full((4,), 0.4))
    codes = module.quantized(weight).codes
    assert (codes[weight.abs().numpy() < 0.6] == 0).all()
    assert (np.abs(codes[weight.abs().numpy() > 1.4]) == 7).all()


def test_qil_gradients_by_hand():
    """Four weights alike inside the interval, w_hat = (|w| - c + d) / 2d: sums over four, divided by sqrt(4)."""
    weight = torch.full((1, 4), -0.5)
    module = qil.FakeQuant.Weight(weight, 4)
    learned(module, "center", [0.6])
    learned(module, "distance", [0.4])
    gain = float(module.gain)
    leaf = weight.clone().requires_grad_()
    module(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, torch.full((1, 4), gain * 0.5 / 0.4))
    assert float(module.center.grad) == pytest.approx(2 * gain * 0.5 / 0.4)  # the weights and dw_hat/dc are negative
    assert float(module.distance.grad) == pytest.approx(-2 * gain * (0.6 - 0.5) * 0.5 / 0.4**2, rel=1e-5)


def test_qil_activation_gradients_by_hand():
    """x_hat = (x - c + d) / 2d for one of four features, gain 2: dx = 1 / d, dc = -1 / d, dd = -(x - c) / d**2."""
    module = qil.FakeQuant.Activation(4, 0.0, 2.0, foldable=True)
    learned(module, "center", 0.9)
    learned(module, "distance", 0.5)
    x = torch.tensor([[0.1, 1.0, 5.0, 0.0]], requires_grad=True)
    module(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[0.0, 2.0, 0.0, 0.0]]))
    assert float(module.center.grad) == pytest.approx(-2.0 / 2)
    assert float(module.distance.grad) == pytest.approx(-(1.0 - 0.9) / 0.5**2 / 2, rel=1e-5)


def test_qil_activation_starts_late_only_where_that_can_be_folded():
    x = torch.linspace(0, 2, 101)
    folded, plain = (qil.FakeQuant.Activation(4, 0.0, 2.0, foldable=foldable) for foldable in (True, False))
    assert folded.qparams() == plain.qparams()
    learned(folded, "center", 1.2)
    learned(folded, "distance", 0.5)
    assert float(folded.qparams().start) == pytest.approx(0.7)
    assert not folded(x[x < 0.7]).any()
    assert (folded(x[x > 1.7]) == folded.gain).all()
    learned(plain, "distance", 0.5)
    assert plain.qparams().start == 0
    assert [name for name, _ in plain.named_parameters()] == ["distance"]
    two_sided = qil.FakeQuant.Activation(4, -1.0, 1.0, foldable=True)
    assert [name for name, _ in two_sided.named_parameters()] == ["distance"]


# ----------------------------------------------------------------------------------------------------------- ste


def test_one_bit_is_xnor_net():
    """Rastegari 2016, eq. 6: the sign times the mean magnitude of a channel, of the current weights."""
    weight = draw(9, 4, 3, 3, 3)
    module = ste.FakeQuant.Weight(weight, 1)
    for w in (weight, 2 * weight - 1):
        expected = w.sign() * w.abs().mean(dim=(1, 2, 3), keepdim=True)
        torch.testing.assert_close(module(w), expected)


def test_one_bit_gradient():
    """Through the sign, within three scales of 0, and through the scale: w = -1, 1, 1, 13 has mean magnitude 4."""
    weight = torch.tensor([[-1.0, 1.0, 1.0, 13.0]], requires_grad=True)
    ste.FakeQuant.Weight(weight, 1)(weight).backward(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    through_scale = (-1 + 2 + 3 + 4) / 4
    assert weight.grad.tolist() == [[1 - through_scale, 2 + through_scale, 3 + through_scale, through_scale]]


def test_ste_weight_ranges_follow_the_weights_until_the_last_quarter():
    weight = draw(10, 4, 50)
    module = ste.FakeQuant.Weight(weight, 4)
    first = module.scale.clone()
    module.start_epoch(1, 4)
    module.eval()(weight * 2)
    assert torch.equal(module.scale, first)  # evaluation changes nothing
    module.train()(weight * 2)
    torch.testing.assert_close(module.scale, 2 * first)
    module(weight * 3)
    torch.testing.assert_close(module.scale, 2 * first)  # once an epoch
    module.start_epoch(4, 4)
    module(weight * 3)
    torch.testing.assert_close(module.scale, 2 * first)
    assert module.frozen


def test_ste_activation_range_is_a_moving_average_of_the_kept_share():
    module = ste.FakeQuant.Activation(8, 0.0, 2.0)
    x = torch.linspace(0, 4, 50)  # calibration kept half of it
    module(x)
    assert float(module.scale) == pytest.approx(2.0 / 255)
    module(2 * x)
    assert float(module.scale) == pytest.approx((0.99 * 2.0 + 0.01 * 4.0) / 255)
    before = module.scale.clone()
    module.eval()(9 * x)
    module.train().start_epoch(4, 4)
    module(9 * x)
    assert torch.equal(module.scale, before)
    module.start_epoch(3, 4)
    module(9 * x)
    assert module.scale > before


def test_ste_activation_survives_a_first_batch_of_zeros():
    module = ste.FakeQuant.Activation(4, 0.0, 2.0)
    module(torch.zeros(5))
    module(torch.linspace(0, 2, 9))
    assert torch.isfinite(module.scale)
    assert module.scale > 0
