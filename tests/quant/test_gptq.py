"""GPTQ against the textbook's one column at a time, with the inverse updated in plain sight."""

import numpy as np
import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.core.scheme import weight
from qdeploy.quant.codes import nearest_codes
from qdeploy.quant.rounding import gptq
from qdeploy.quant.rounding._layer import Layer
from qdeploy.quant.weight_range import symmetric_scale

SCHEME = weight(3)


def problem(rows: int, size: int, groups: int = 1, seed: int = 0) -> Layer:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, 3 * size, size)) @ rng.standard_normal((groups, size, size))
    moment = np.einsum("gsk,gsl->gkl", x, x) / (3 * size)
    w = rng.standard_normal((groups * rows, size)).astype(np.float32)
    return Layer.of(w, symmetric_scale(w, SCHEME, observer="mse"), SCHEME, moment)


def textbook(steps: np.ndarray, moment: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Frantar et al. 2022, eq. 2 and 3: quantize a column, spread its error, drop it from the inverse Hessian."""
    rest, codes, inverse = steps.copy(), np.empty_like(steps), np.linalg.inv(moment)
    for q in order:
        codes[:, q] = nearest_codes(rest[:, q], SCHEME)
        rest -= np.outer((rest[:, q] - codes[:, q]) / inverse[q, q], inverse[q])
        inverse = inverse - np.outer(inverse[:, q], inverse[q]) / inverse[q, q]
    return codes


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("size", [1, 10, gptq.BLOCK + 40])
def test_blocks_and_cholesky_change_nothing(size, act_order):
    layer = problem(4, size, groups=2)
    found = gptq.solve(layer, gptq.Spread.of(layer, act_order=act_order))
    damped = layer.damped(0.01)
    for group in range(2):
        order = np.argsort(-np.diag(damped[group]), kind="stable") if act_order else np.arange(size)
        expected = textbook(layer.steps[group], damped[group], order)
        assert np.mean(found[group] == expected) > 0.999


def test_act_order_helps_where_inputs_differ_in_power():
    layer = problem(64, 40, seed=1)
    powers = np.geomspace(0.1, 10, 40)
    uneven = Layer(layer.steps, layer.moment * powers[:, None] * powers, SCHEME, layer.shape)
    spreads = [gptq.Spread.of(uneven, act_order=on) for on in (True, False)]
    ordered, plain = (uneven.error(gptq.solve(uneven, spread)).sum() for spread in spreads)
    assert ordered < 0.9 * plain


def test_little_data_need_damping_and_get_it():
    """Fewer columns than inputs: the second moment is singular."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((10, 30))
    w = rng.standard_normal((8, 30)).astype(np.float32)
    scale = symmetric_scale(w, SCHEME)
    layer = Layer.of(w, scale, SCHEME, x.T @ x / 10)
    codes = gptq.round_weight(w, scale, SCHEME, second_moment=x.T @ x / 10)
    assert layer.error(codes[None].astype(float)).sum() < 0.3 * layer.error(layer.nearest).sum()


def test_refusals():
    layer, w = problem(2, 4), np.ones((2, 4), np.float32)
    scale = np.ones(2, np.float32)
    for damping in (0.0, -1.0, float("nan")):
        with pytest.raises(QDeployError, match=r"rounding\.damping"):
            gptq.round_weight(w, scale, SCHEME, second_moment=layer.moment, damping=damping)
    with pytest.raises(QDeployError, match="not positive definite"):
        gptq.round_weight(w, scale, SCHEME, second_moment=np.diag([1.0, 1.0, 1.0, -1.0]))
