"""What every rounding plugin must do, found by looking at the folder."""

import inspect
import tracemalloc

import numpy as np
import pytest

from qdeploy.core import plugins
from qdeploy.core.errors import QDeployError
from qdeploy.core.scheme import QScheme, weight
from qdeploy.quant.rounding.nearest import round_weight as nearest
from qdeploy.quant.weight_range import symmetric_scale

SCHEMES = {
    "8 bits": weight(8),
    "4 bits": weight(4),
    "2 bits": weight(2),
    "four levels": QScheme(bits=2, signed=True, codebook=(-3, -1, 1, 3)),
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


SHAPES = [(8, 16), (6, 3, 3, 3), (5, 1, 3, 3), (7, 1)]


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


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_stay_in_range_at_every_width(round_weight, bits):
    w, moment = layer(4, 12)
    for one in (weight(bits), QScheme(bits=bits, signed=True)):
        scale = 0.3 * symmetric_scale(w, one)  # most weights lie beyond the last code
        assert one.contains(round_weight(w, scale, one, second_moment=moment))


def test_groups_are_layers_of_their_own(round_weight, scheme):
    """A grouped layer, and a depthwise one, is its groups one after the other."""
    for shape, groups in (((6, 2, 3, 3), 3), ((5, 1, 3, 3), 5)):
        w, _ = layer(*shape, seed=2)
        moments = np.stack([layer(*shape, seed=10 + group)[1] for group in range(groups)])
        scale = symmetric_scale(w, scheme, observer="mse")
        together = round_weight(w, scale, scheme, second_moment=moments)
        rows = np.split(np.arange(len(w)), groups)
        apart = [round_weight(w[r], scale[r], scheme, second_moment=m) for r, m in zip(rows, moments, strict=True)]
        error, expected = (
            sum(output_error(c, w[r], scale[r], m) for c, r, m in zip(codes, rows, moments, strict=True))
            for codes in ([together[r] for r in rows], apart)
        )
        np.testing.assert_allclose(error, expected, rtol=0.05)


def test_a_moments_scale_says_nothing(round_weight):
    """Inputs a thousand times as large are the same problem; powers of two keep every bit."""
    w, moment = layer(6, 20)
    scale = symmetric_scale(w, weight(3))
    expected = round_weight(w, scale, weight(3), second_moment=moment)
    for factor in (2.0**-40, 2.0**40):
        found = round_weight(w, scale, weight(3), second_moment=moment * np.float32(factor))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_is_refused(round_weight, value):
    w, moment = layer(4, 6)
    scale = symmetric_scale(w, weight(4))
    bad = w.copy()
    bad[1, 2] = value
    with pytest.raises(QDeployError, match="1 NaN and 0" if np.isnan(value) else "0 NaN and 1"):
        round_weight(bad, scale, weight(4), second_moment=moment)
    bad = moment.copy()
    bad[1, 2] = value
    if round_weight is not nearest:  # which does not look at it
        with pytest.raises(QDeployError, match="in the second moment"):
            round_weight(w, scale, weight(4), second_moment=bad)


def test_moments_of_another_layer_are_refused(round_weight):
    if round_weight is nearest:
        return
    w, _ = layer(4, 6)
    for shape in ((5, 5), (3, 6, 6), (6,)):
        with pytest.raises(QDeployError, match="second moment has shape"):
            round_weight(w, symmetric_scale(w, weight(4)), weight(4), second_moment=np.ones(shape, np.float32))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_knowing_the_inputs_beats_nearest_on_the_output(round_weight, bits):
    """The claim of every solver that looks at H; on the weights themselves it may lose, and does."""
    if round_weight is nearest:
        return
    w, moment = layer(16, 40, seed=4)
    scale = symmetric_scale(w, weight(bits), observer="mse")
    codes, plain = round_weight(w, scale, weight(bits), second_moment=moment), nearest(w, scale, weight(bits))
    assert output_error(codes, w, scale, moment) < 0.7 * output_error(plain, w, scale, moment)
    identity = np.eye(len(moment))
    assert output_error(codes, w, scale, identity) > output_error(plain, w, scale, identity)


def test_memory_is_that_of_one_layer(round_weight):
    """A few times the second moment and the weights, in float64: no temporary of [C_out, K, K]."""
    w, moment = layer(64, 256)
    scale = symmetric_scale(w, weight(4))
    tracemalloc.start()
    round_weight(w, scale, weight(4), second_moment=moment)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 8 * (moment.size + w.size)
