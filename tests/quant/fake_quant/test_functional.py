"""The autograd functions against the plain formulas, differentiated by PyTorch in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qdeploy.core.scheme import QScheme, weight
from qdeploy.quant.codes import nearest_codes
from qdeploy.quant.fake_quant._functional import fake_quantize, nearest, positive, scale_gradient, straight_through


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rounded(v: torch.Tensor) -> torch.Tensor:
    """Rounding with the derivative 1."""
    return v + (v.round() - v).detach()


def plain_lsq(x, scale, low, high):
    return rounded((x / scale).clamp(low, high)) * scale


def plain_pact(x, scale, low, high):
    """Clip at low * scale and high * scale, whose gradient is the limits'; then round as if that were the identity."""
    clipped = torch.minimum(torch.maximum(x, low * scale), high * scale)
    step = scale.detach()
    return clipped + (rounded(clipped / step) * step - clipped).detach()


@pytest.mark.parametrize(("low", "high"), [(0, 15), (-8, 7), (0, 255), (-128, 127), (0, 1), (-3, 0)])
@pytest.mark.parametrize("saturated_only", [False, True], ids=["lsq", "pact"])
def test_gradients_are_those_of_the_plain_formula(low, high, saturated_only):
    x, incoming = draw(0, 8, 16, 9, 9), draw(1, 8, 16, 9, 9)
    scale = torch.tensor(1.7 / max(high, -low), requires_grad=True)
    leaf = x.clone().requires_grad_()
    quantizer = scale.detach() if saturated_only else scale
    fake_quantize(leaf, quantizer, scale, low, high, saturated_only=saturated_only).backward(incoming)

    exact_leaf, exact_scale = (t.detach().double().requires_grad_() for t in (x, scale))
    plain = plain_pact if saturated_only else plain_lsq
    plain(exact_leaf, exact_scale, low, high).backward(incoming.double())
    torch.testing.assert_close(leaf.grad.double(), exact_leaf.grad, rtol=0, atol=0)
    # float32 sums over all elements: a few units of the last digit of the largest sum of magnitudes in them.
    tolerance = 1e-6 * float(incoming.norm() * x.norm() / scale.detach())
    assert float(scale.grad) == pytest.approx(float(exact_scale.grad), rel=1e-4, abs=tolerance)


def test_gradients_with_a_scale_for_each_direction():
    """QIL: the scale that quantizes is learned, the gain of the result is not, or has its own gradient."""
    x, incoming = draw(2, 500), draw(3, 500)
    tensors = x, torch.tensor(0.11), torch.tensor(0.17)
    leaves = [t.clone().requires_grad_() for t in tensors]
    fake_quantize(*leaves, 0, 15).backward(incoming)
    exact = [t.double().requires_grad_() for t in tensors]
    (rounded((exact[0] / exact[1]).clamp(0, 15)) * exact[2]).backward(incoming.double())
    for leaf, expected in zip(leaves, exact, strict=True):
        torch.testing.assert_close(leaf.grad.double(), expected.grad, rtol=1e-5, atol=1e-5)


def test_a_huge_activation_on_a_tiny_scale_has_finite_gradients():
    x = torch.tensor([0.0, 1e30, -1e30, 1e-38], requires_grad=True)
    scale = torch.tensor(1.2e-38, requires_grad=True)
    fake_quantize(x, scale, scale, -8, 7).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(scale.grad)


@pytest.mark.parametrize(
    "scheme",
    [
        weight(4),
        QScheme(bits=4, signed=True),
        QScheme(bits=1, signed=True, codebook=(-1, 1)),
        QScheme(bits=3, signed=True, codebook=(-4, -2, -1, 0, 1, 2, 4)),
    ],
    ids=["symmetric", "lopsided", "binary", "powers of two"],
)
def test_codes_and_ties_are_those_of_the_rest_of_the_package(scheme):
    steps = torch.cat([torch.arange(-40, 41) / 4, draw(4, 200) * 4, torch.tensor([0.0, math.inf, -math.inf])])
    np.testing.assert_array_equal(nearest(steps, scheme).numpy(), nearest_codes(steps.numpy(), scheme))


def test_straight_through_passes_the_gradient_strictly_inside_its_window():
    steps = torch.tensor([-8.0, -7.9, -0.2, 0.0, 6.9, 7.0, 30.0], requires_grad=True)
    codes = straight_through(steps, QScheme(bits=4, signed=True), -8, 7)
    assert codes.tolist() == [-8, -8, 0, 0, 7, 7, 7]
    codes.backward(torch.full((7,), 3.0))
    assert steps.grad.tolist() == [0, 3, 3, 3, 3, 0, 0]


def test_scale_gradient_scales_nothing_else():
    x = draw(5, 7).requires_grad_()
    y = scale_gradient(x, 0.1)
    assert torch.equal(y, x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.full((7,), 0.1))


def test_positive_turns_back_what_crosses_zero():
    x = torch.tensor([0.5, -0.5, 0.0], requires_grad=True)
    y = positive(x)
    assert (y > 0).all()
    assert y[:2].tolist() == [0.5, 0.5]
    y.sum().backward()
    assert x.grad[:2].tolist() == [1, -1]
