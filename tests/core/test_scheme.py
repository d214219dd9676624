"""QScheme: which codes exist."""

import dataclasses

import numpy as np
import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.core.scheme import QScheme, activation, weight


@pytest.mark.parametrize("bits", range(1, 9))
def test_ranges_of_every_width(bits):
    assert (activation(bits).qmin, activation(bits).qmax) == (0, 2**bits - 1)
    signed = QScheme(bits=bits, signed=True)
    assert (signed.qmin, signed.qmax) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert activation(bits).levels == signed.levels == 2**bits
    if bits > 1:
        assert -weight(bits).qmin == weight(bits).qmax == 2 ** (bits - 1) - 1
        assert weight(bits).levels == 2**bits - 1


def test_containers_are_what_kernels_read():
    assert activation().dtype == np.uint8
    assert weight().dtype == weight(4).dtype == np.int8


def test_a_codebook_is_its_own_range():
    scheme = QScheme(bits=3, signed=True, codebook=(-4, -1, 0, 2, 8))
    assert (scheme.qmin, scheme.qmax, scheme.levels) == (-4, 8, 5)
    assert scheme.contains(np.array([[-4, 8], [0, 2]]))
    assert not scheme.contains(np.array([1]))


def test_contains_checks_both_ends_and_takes_nothing():
    assert weight(4).contains(np.array([-7, 7]))
    assert not weight(4).contains(np.array([-8]))
    assert not weight(4).contains(np.array([8]))
    assert weight(4).contains(np.zeros((0, 3), np.int8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 0}, "0 bits does not exist"),
        ({"bits": 9}, "9 bits does not exist"),
        ({"symmetric": True}, "needs signed codes"),
        ({"bits": 1, "signed": True, "symmetric": True}, "codebook"),
        ({"bits": 2, "signed": True, "codebook": (1, -1)}, "sorted"),
        ({"bits": 2, "signed": True, "codebook": (0, 0, 1)}, "without repeats"),
        ({"bits": 1, "signed": True, "codebook": (-1, 0, 1)}, "at most"),
        ({"bits": 2, "codebook": (-1, 1)}, "do not fit uint8"),
        ({"bits": 2, "signed": True, "codebook": (0, 128)}, "do not fit int8"),
    ],
)
def test_schemes_that_cannot_be(arguments, message):
    with pytest.raises(QDeployError, match=message):
        QScheme(**arguments)


def test_schemes_are_values():
    assert weight(4) == QScheme(bits=4, signed=True, symmetric=True)
    assert len({weight(4), weight(4), activation(4)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        weight(4).bits = 8
