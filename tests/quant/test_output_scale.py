"""Scales judged by the layer's output: fitted ones are optimal, searched ones never lose to those of the weights."""

import numpy as np
import pytest

from qdeploy.core.scheme import QScheme, weight
from qdeploy.quant.output_scale import fitted_scale, output_scale
from qdeploy.quant.rounding import gptq
from qdeploy.quant.rounding._layer import Layer
from qdeploy.quant.weight_range import symmetric_scale

SCHEMES = [weight(4), weight(2), weight(1), QScheme(bits=2, signed=True, codebook=(-3, -1, 1, 3))]


def layer(rows: int = 12, size: int = 40, groups: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((groups, 3 * size, size)) @ rng.standard_normal((groups, size, size))
    return rng.standard_normal((groups * rows, size)).astype(np.float32), np.einsum("gsk,gsl->gkl", x, x) / (3 * size)


def errors(w: np.ndarray, codes: np.ndarray, scale: np.ndarray, scheme: QScheme, moment: np.ndarray) -> np.ndarray:
    found = Layer.of(w, scale, scheme, moment)
    return found.error(codes.reshape(found.steps.shape).astype(float)).reshape(-1) * scale.astype(float) ** 2


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("groups", [1, 3])
def test_output_scale_is_never_worse_than_mse_where_gptq_rounds(scheme, groups):
    w, moment = layer(groups=groups)
    found = []
    for scale in (output_scale(w, scheme, moment), symmetric_scale(w, scheme, observer="mse")):
        assert scale.dtype == np.float32
        seen = Layer.of(w, scale, scheme, moment)
        codes = gptq.solve(seen, gptq.Spread.of(seen))
        found.append(errors(w, codes, scale, scheme, moment))
    assert (found[0] <= found[1]).all()
    assert found[0].sum() < 0.98 * found[1].sum()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_fitted_scale_is_the_best_for_its_codes(scheme):
    w, moment = layer()
    start = symmetric_scale(w, scheme, observer="mse")
    codes = gptq.round_weight(w, start, scheme, second_moment=moment)
    best = fitted_scale(w, codes, start, moment)
    least = errors(w, codes, best, scheme, moment)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert (least <= errors(w, codes, best * np.float32(factor), scheme, moment)).all()


def test_codes_that_say_nothing_keep_their_scale():
    w, moment = layer(rows=3)
    codes = np.stack([np.zeros(40), -np.sign(w[1]), np.sign(w[2])]).astype(np.int8)
    start = np.full(3, 0.25, np.float32)
    found = fitted_scale(w, codes, start, moment)
    np.testing.assert_array_equal(found[:2], start[:2])
    assert found[2] != start[2]
    np.testing.assert_array_equal(fitted_scale(w, codes, start, 0 * moment), start)
