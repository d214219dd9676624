"""AdaRound: the paper's loss and its gradient, the descent behind it, and how close both come to the optimum."""

import itertools

import numpy as np
import pytest
import torch

from qdeploy.core.errors import QDeployError
from qdeploy.core.scheme import QScheme, weight
from qdeploy.quant.codes import neighbouring_codes
from qdeploy.quant.rounding import adaround
from qdeploy.quant.rounding._descent import BLOCK, descend
from qdeploy.quant.rounding._layer import Layer
from qdeploy.quant.weight_range import symmetric_scale

BINARY = weight(1)


def problem(rows: int, size: int, scheme: QScheme, groups: int = 1, seed: int = 0) -> Layer:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, 3 * size, size)) @ rng.standard_normal((groups, size, size))
    w = rng.standard_normal((groups * rows, size)).astype(np.float32)
    moment = np.einsum("gsk,gsl->gkl", x, x) / (3 * size)
    return Layer.of(w, symmetric_scale(w, scheme, observer="mse"), scheme, moment)


def reference_loss(layer: Layer, v: torch.Tensor, beta: float | None, regularisation: float) -> torch.Tensor:
    """Eq. 21 with eq. 23 and 24 in float64, from their definitions."""
    lower, upper = (torch.from_numpy(a) for a in neighbouring_codes(layer.steps, layer.scheme))
    h = torch.clip(torch.sigmoid(v) * (1.1 + 0.1) - 0.1, 0, 1)
    difference = torch.from_numpy(layer.steps) - (lower + h * (upper - lower))
    error = torch.einsum("grk,gkl,grl->gr", difference, torch.from_numpy(layer.moment), difference)
    loss = (error / torch.from_numpy(layer.error(layer.nearest))).sum()
    return loss if beta is None else loss + regularisation * (1 - (2 * h - 1).abs() ** beta).sum()


@pytest.mark.parametrize("progress", [-0.5, 0.0, 0.5, 1.0])
def test_the_gradient_is_the_papers(progress):
    layer = problem(3, 7, weight(3), groups=2)
    problem_ = adaround.Problem.of(layer, *neighbouring_codes(layer.steps, layer.scheme))
    v = 2 * torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v.requires_grad_()
    beta = None if progress <= 0 else 20 + (2 - 20) * progress
    reference_loss(layer, v, beta, 0.3).backward()
    found = problem_.gradient(v.detach().float().numpy(), progress, 0.3)
    np.testing.assert_allclose(found, v.grad.numpy(), rtol=1e-3, atol=1e-4)


def test_the_start_is_the_weights_themselves():
    layer = problem(4, 20, weight(3))
    lower, upper = neighbouring_codes(layer.steps, layer.scheme)
    h = adaround.rectified(adaround.start(layer, lower, upper))
    inside = (layer.steps >= lower) & (layer.steps <= upper)
    assert inside.mean() > 0.8
    np.testing.assert_allclose((lower + h * (upper - lower))[inside], layer.steps[inside], atol=0.011)


@pytest.mark.parametrize("scheme", [weight(2), BINARY, QScheme(bits=2, signed=True, codebook=(-3, -1, 1, 3))], ids=str)
def test_close_to_the_best_of_all_codes(scheme):
    """Every combination of codes tried, which few inputs allow: on average within a fifth, and nearest is far away."""
    layer = problem(24, 6, scheme, seed=3)
    codes = np.asarray(scheme.codebook or range(scheme.qmin, scheme.qmax + 1), float)
    tried = np.array(list(itertools.product(codes, repeat=6)))
    best = np.min([layer.error(np.broadcast_to(c, layer.steps.shape)) for c in tried], axis=0)
    w, scale = layer.steps[0].astype(np.float32), np.ones(24, np.float32)
    found = adaround.round_weight(w, scale, scheme, second_moment=layer.moment)
    assert layer.error(found[None].astype(float)).sum() < 1.2 * best.sum()
    assert layer.error(layer.nearest).sum() > 1.4 * best.sum()


@pytest.mark.parametrize("scheme", [weight(4), BINARY], ids=["4 bits", "1 bit"])
@pytest.mark.parametrize("size", [9, BLOCK + 30])
def test_behind_the_descent_no_single_change_helps(scheme, size):
    layer = problem(3, size, scheme, groups=2)
    codes = descend(layer, layer.nearest, sweeps=1000)
    error = layer.error(codes)
    assert (error <= layer.error(layer.nearest)).all()
    for k in range(size):
        for code in scheme.codebook or range(scheme.qmin, scheme.qmax + 1):
            changed = codes.copy()
            changed[..., k] = code
            assert (layer.error(changed) >= error * (1 - 1e-3)).all()


def test_more_iterations_and_the_descent_do_better():
    layer = problem(16, 60, weight(3), seed=5)
    w, scale = layer.steps[0].astype(np.float32), np.ones(16, np.float32)

    def error(**options: int) -> float:
        codes = adaround.round_weight(w, scale, weight(3), second_moment=layer.moment, **options)
        return float(layer.error(codes[None].astype(float)).sum())

    assert error(iterations=1000, sweeps=0) < 0.9 * error(iterations=50, sweeps=0)
    assert error(iterations=50) < 0.9 * error(iterations=50, sweeps=0)
    assert error(iterations=0, sweeps=0) <= float(layer.error(layer.nearest).sum())


@pytest.mark.parametrize("options", [{"iterations": -1}, {"sweeps": -1}, {"warm_up": 1.0}, {"warm_up": -0.1}], ids=str)
def test_refusals(options):
    w = np.ones((2, 3), np.float32)
    with pytest.raises(QDeployError, match="warm_up"):
        adaround.round_weight(w, np.ones(2, np.float32), weight(4), second_moment=np.eye(3), **options)
