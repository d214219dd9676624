"""Per-channel weight scales: what minmax and mse claim, and the channels that have no natural scale."""

import numpy as np
import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.core.qtensor import QTensor
from qdeploy.core.scheme import QScheme, activation, weight
from qdeploy.quant.rounding.nearest import round_weight
from qdeploy.quant.weight_range import BLOCK, symmetric_scale

BINARY = QScheme(bits=1, signed=True, codebook=(-1, 1))
SCHEMES = [weight(8), weight(4), weight(2), BINARY, QScheme(bits=3, signed=True, codebook=(-4, -2, -1, 0, 1, 2, 4))]
IDS = ["8 bits", "4 bits", "2 bits", "binary", "powers of two"]
TINY = np.finfo(np.float32).tiny


def layer(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    magnitudes = 10.0 ** rng.uniform(-3, 1, (shape[0], *[1] * (len(shape) - 1)))
    return (rng.standard_t(4, shape) * magnitudes).astype(np.float32)


def errors(w: np.ndarray, scale: np.ndarray, scheme: QScheme) -> np.ndarray:
    """The squared error of each channel, as the artifact dequantizes it."""
    codes = round_weight(w, scale, scheme)
    real = QTensor(codes, scale, np.zeros(len(w), scheme.dtype), scheme, axis=0).dequantize()
    return ((real.astype(np.float64) - w) ** 2).reshape(len(w), -1).sum(axis=1)


def test_minmax_maps_the_largest_magnitude_to_the_highest_code():
    w = layer(16, 3, 3, 3)
    for bits in (8, 4, 3, 2):
        scale = symmetric_scale(w, weight(bits))
        assert scale.dtype == np.float32
        np.testing.assert_allclose(scale, np.abs(w).max(axis=(1, 2, 3)) / (2 ** (bits - 1) - 1), rtol=1e-6)
        codes = round_weight(w, scale, weight(bits))
        assert (np.abs(codes).max(axis=(1, 2, 3)) == 2 ** (bits - 1) - 1).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=IDS)
@pytest.mark.parametrize("shape", [(40, 300), (8, 4, 3, 3), (30, 1, 3, 3), (20, 2), (5, 1)], ids=str)
def test_mse_is_never_worse_than_minmax(scheme, shape):
    for seed in range(3):
        w = layer(*shape, seed=seed)
        full = symmetric_scale(w, scheme)
        shrunk = symmetric_scale(w, scheme, observer="mse")
        assert (shrunk <= full).all()
        assert (errors(w, shrunk, scheme) <= errors(w, full, scheme)).all()


@pytest.mark.parametrize(("bits", "gain"), [(8, 1.0), (4, 1.5), (3, 2.5), (2, 2.0)])
def test_mse_beats_minmax_on_heavy_tails(bits, gain):
    w = layer(40, 1000)
    scheme = weight(bits)
    full, shrunk = symmetric_scale(w, scheme), symmetric_scale(w, scheme, observer="mse")
    assert errors(w, shrunk, scheme).sum() * gain < errors(w, full, scheme).sum()


@pytest.mark.parametrize("scheme", SCHEMES, ids=IDS)
def test_mse_finds_what_brute_force_finds(scheme):
    w = layer(8, 1000, seed=2)
    full = symmetric_scale(w, scheme)
    best = np.min([errors(w, full * np.float32(f), scheme) for f in np.linspace(0.03, 1.0, 300)], axis=0)
    # The error of a thousand weights is a jagged function of the scale: 300 trials hit some dip that 70 miss.
    assert (errors(w, symmetric_scale(w, scheme, observer="mse"), scheme) <= best * 1.03).all()


def test_binary_scale_is_the_mean_magnitude():
    """The closed form of XNOR-Net (Rastegari et al. 2016, eq. 6)."""
    w = np.random.default_rng(0).standard_normal((10, 500)).astype(np.float32)
    np.testing.assert_allclose(symmetric_scale(w, BINARY, observer="mse"), np.abs(w).mean(axis=1), rtol=0.01)


@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_a_channels_scale_is_its_own(observer):
    w = layer(7, BLOCK // 3, seed=3)  # several blocks
    scale = symmetric_scale(w, weight(4), observer=observer)
    alone = [symmetric_scale(w[i : i + 1], weight(4), observer=observer)[0] for i in range(7)]
    np.testing.assert_array_equal(scale, alone)


@pytest.mark.parametrize("observer", ["minmax", "mse"])
@pytest.mark.parametrize("factor", [2.0**-90, 2.0**-30, 2.0**40, 2.0**115])
def test_scales_scale(observer, factor):
    w = layer(6, 50)
    scale = symmetric_scale(w, weight(8), observer=observer)
    np.testing.assert_array_equal(symmetric_scale(w * np.float32(factor), weight(8), observer=observer), scale * factor)


@pytest.mark.parametrize("observer", ["minmax", "mse"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=IDS)
def test_channels_without_a_natural_scale(observer, scheme):
    w = layer(6, 20)
    w[0] = 0.0
    w[1] = 1e-45
    w[2] = 1e-38
    w[3] = 3e38
    w[4, 1:] = 0.0
    scale = symmetric_scale(w, scheme, observer=observer)
    assert scale.dtype == np.float32
    assert np.isfinite(scale).all()
    assert (scale >= TINY).all()
    assert scheme.contains(round_weight(w, scale, scheme))


def test_a_zero_channel_has_the_largest_scale_around():
    w = layer(5, 20)
    w[2] = 0.0
    for observer in ("minmax", "mse"):
        others = np.delete(symmetric_scale(w, weight(8)), 2)
        assert symmetric_scale(w, weight(8), observer=observer)[2] == others.max()
        zeros = symmetric_scale(np.zeros((2, 3, 3), np.float32), weight(8), observer=observer)
        np.testing.assert_array_equal(zeros, np.float32(1 / 127))


@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_one_bit_and_lopsided_codes(observer):
    w = layer(3, 30)
    for scheme in (QScheme(bits=1, signed=True), QScheme(bits=4, signed=True)):
        scale = symmetric_scale(w, scheme, observer=observer)
        assert (scale > 0).all()
        assert scheme.contains(round_weight(w, scale, scheme))


def test_refusals():
    w = layer(4, 9)
    w[1, 2] = np.nan
    w[2, :2] = np.inf, -np.inf
    with pytest.raises(QDeployError, match="1 NaN and 2 infinite values among the 36 of the weight"):
        symmetric_scale(w, weight(8))
    with pytest.raises(QDeployError, match="'mss'") as caught:
        symmetric_scale(layer(4, 9), weight(8), observer="mss")
    assert "'mse'" in caught.value.hint
    with pytest.raises(QDeployError, match="signed codes"):
        symmetric_scale(layer(4, 9), activation(8))


def test_empty_weights():
    for shape in ((0, 3), (0, 3, 3, 3)):
        assert symmetric_scale(np.zeros(shape, np.float32), weight(8), observer="mse").shape == (0,)
    assert symmetric_scale(np.zeros((4, 0), np.float32), weight(8), observer="mse").shape == (4,)
