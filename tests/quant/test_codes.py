"""nearest_codes against its definition."""

import numpy as np
import pytest

from qdeploy.core.affine import quantize
from qdeploy.core.scheme import QScheme, weight
from qdeploy.quant.codes import nearest_codes, neighbouring_codes

CODEBOOK = QScheme(bits=3, signed=True, codebook=(-8, -3, -1, 0, 1, 4))


def test_half_to_even_and_clipped():
    steps = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 6.5, 7.5, 1e30, -1e30, -7.6], np.float32)
    np.testing.assert_array_equal(nearest_codes(steps, weight(4)), [0, 2, 2, 0, -2, 6, 7, 7, -7, -7])


@pytest.mark.parametrize("scheme", [weight(8), weight(4), QScheme(bits=4, signed=True)], ids=["8", "4", "lopsided"])
def test_agrees_with_onnxs_quantize(scheme):
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    scale = np.float32(3.0 / scheme.qmax)
    codes = nearest_codes(x / scale, scheme)
    assert codes.dtype == np.float32
    np.testing.assert_array_equal(codes, quantize(x, scale, np.asarray(0), scheme))


def test_codebook_gives_the_nearest_code():
    steps = np.random.default_rng(0).uniform(-12, 12, (50, 40)).astype(np.float32)
    codebook = np.array(CODEBOOK.codebook)
    expected = codebook[np.abs(steps[..., None] - codebook).argmin(axis=-1)]
    np.testing.assert_array_equal(nearest_codes(steps, CODEBOOK), expected)


def test_codebook_ties_are_symmetric():
    steps = np.array([0.5, -0.5, 2.5, -2.0, -5.5, 1e30, -1e30], np.float32)
    np.testing.assert_array_equal(nearest_codes(steps, CODEBOOK), [0, 0, 1, -1, -3, 4, -8])
    binary = QScheme(bits=1, signed=True, codebook=(-1, 1))
    np.testing.assert_array_equal(nearest_codes(np.array([0.0, -0.0, 1e-9, -1e-9], np.float32), binary), [1, 1, 1, -1])


@pytest.mark.parametrize("scheme", [weight(3), CODEBOOK], ids=["3 bits", "codebook"])
def test_neighbouring_codes_are_adjacent_and_hold_the_value_between_them(scheme):
    steps = np.random.default_rng(0).uniform(-6, 6, (50, 40))
    lower, upper = neighbouring_codes(steps, scheme)
    codes = np.asarray(scheme.codebook or range(scheme.qmin, scheme.qmax + 1))
    np.testing.assert_array_equal(np.searchsorted(codes, upper), np.searchsorted(codes, lower) + 1)
    inside = (steps >= codes[0]) & (steps <= codes[-1])
    assert ((lower <= steps) & (steps <= upper))[inside].all()
    assert (lower[steps < codes[0]] == codes[0]).all()
    assert (upper[steps > codes[-1]] == codes[-1]).all()
    nearest = nearest_codes(steps, scheme)
    assert ((nearest == lower) | (nearest == upper)).all()


def test_a_single_code_is_its_own_neighbour():
    only = QScheme(bits=1, signed=True, codebook=(2,))
    for codes in neighbouring_codes(np.array([-5.0, 2.0, 9.0]), only):
        np.testing.assert_array_equal(codes, [2, 2, 2])
