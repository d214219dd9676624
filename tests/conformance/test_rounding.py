"""What every rounding plugin must do, found by looking at the folder."""

import inspect

import numpy as np
import pytest

from qdeploy.core import plugins
from qdeploy.core.scheme import QScheme, weight
from qdeploy.quant.rounding.nearest import round_weight as nearest
from qdeploy.quant.weight_range import symmetric_scale

SCHEMES = {
    "8 bits": weight(8),
    "4 bits": weight(4),
    "2 bits": weight(2),
    "lopsided": QScheme(bits=4, signed=True),
    "binary": QScheme(bits=1, signed=True, codebook=(-1, 1)),
    "powers of two": QScheme(bits=3, signed=True, codebook=(-4, -2, -1, 0, 1, 2, 4)),
}


@pytest.fixture(scope="module", params=plugins.names("rounding"))
def round_weight(request):
    return plugins.load("rounding", request.param)


@pytest.fixture(params=SCHEMES)
def scheme(request):
    return SCHEMES[request.param]


def layer(*shape: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and the second moment of correlated inputs that meet them."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape[1:]))
    inputs = rng.standard_normal((4 * size, size)) @ rng.standard_normal((size, size)) / np.sqrt(size)
    return rng.standard_normal(shape).astype(np.float32), (inputs.T @ inputs / len(inputs)).astype(np.float32)


def output_error(codes, w, scale, moment) -> float:
    """E |(W - codes * scale) x|^2, summed over output channels."""
    error = (w - codes * scale.reshape(-1, *[1] * (w.ndim - 1))).reshape(len(w), -1).astype(np.float64)
    return float(np.einsum("ck,kl,cl->", error, moment.astype(np.float64), error))


SHAPES = [(8, 16), (6, 3, 3, 3), (5, 1, 3, 3), (4, 7, 5)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("informed", [False, True], ids=["weights alone", "with inputs"])
def test_codes_are_valid_and_deterministic(round_weight, scheme, shape, informed):
    w, moment = layer(*shape)
    scale = symmetric_scale(w, scheme)
    arguments = {"second_moment": moment if informed else None, "seed": 3}
    before = w.copy(), scale.copy(), moment.copy()
    codes = round_weight(w, scale, scheme, **arguments)
    assert isinstance(codes, np.ndarray)
    assert codes.dtype == scheme.dtype
    assert codes.shape == w.shape
    assert scheme.contains(codes)
    np.testing.assert_array_equal(codes, round_weight(w, scale, scheme, **arguments))
    for array, copy in zip((w, scale, moment), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_never_worse_than_nearest_on_its_own_objective(round_weight, scheme, shape):
    w, moment = layer(*shape, seed=1)
    scale = symmetric_scale(w, scheme, observer="mse")
    for second_moment in (None, moment):
        objective = np.eye(len(moment), dtype=np.float32) if second_moment is None else second_moment
        codes = round_weight(w, scale, scheme, second_moment=second_moment)
        assert output_error(codes, w, scale, objective) <= output_error(nearest(w, scale, scheme), w, scale, objective)


def test_inputs_that_are_always_zero(round_weight, scheme):
    """A dead input makes the second moment singular; the codes must still be codes."""
    w, moment = layer(8, 16)
    moment[3], moment[:, 3] = 0.0, 0.0
    for second_moment in (moment, np.zeros_like(moment)):
        codes = round_weight(w, symmetric_scale(w, scheme), scheme, second_moment=second_moment)
        assert scheme.contains(codes)


def test_zero_weights_become_zero(round_weight, scheme):
    w, moment = layer(4, 6)
    w[2] = 0.0
    scale = symmetric_scale(w, scheme)
    for second_moment in (None, moment):
        codes = round_weight(w, scale, scheme, second_moment=second_moment)
        # Without a code for 0, the scale makes it next to nothing.
        assert np.abs(codes[2] * scale[2]).max() <= 1e-5 * np.abs(w).max()
    zeros = np.zeros((3, 2, 2, 2), np.float32)
    assert scheme.contains(round_weight(zeros, symmetric_scale(zeros, scheme), scheme))


def test_constant_weights_are_exact(round_weight, scheme):
    for value in (0.3, -0.3, 1e-20):
        w = np.full((2, 3, 3), value, np.float32)
        scale = symmetric_scale(w, scheme)
        real = round_weight(w, scale, scheme) * scale[:, None, None]
        if value > 0 or scheme.qmin == -scheme.qmax:
            np.testing.assert_allclose(real, w, rtol=1e-6)


def test_empty_weights(round_weight, scheme):
    for shape in ((0, 3), (4, 0), (0, 3, 3, 3)):
        w = np.zeros(shape, np.float32)
        codes = round_weight(w, symmetric_scale(w, scheme), scheme)
        assert codes.shape == shape
        assert codes.dtype == scheme.dtype


def test_every_plugin_takes_the_same_arguments(round_weight):
    parameters = inspect.signature(round_weight).parameters
    assert list(parameters)[:3] == ["weight", "scale", "scheme"]
    for name in ("second_moment", "seed"):
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
