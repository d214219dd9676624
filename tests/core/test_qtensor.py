"""QTensor: its invariants, and what its codes mean."""

import numpy as np
import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.core.qtensor import QTensor
from qdeploy.core.scheme import QScheme, activation, weight


def make(**changes) -> QTensor:
    """A valid per-channel QTensor, but for ``changes``."""
    arguments = {
        "codes": np.array([[-7, 0, 7], [1, 2, 3]], np.int8),
        "scale": np.array([0.5, 2.0], np.float32),
        "zero_point": np.zeros(2, np.int8),
        "scheme": weight(4),
        "axis": 0,
    }
    return QTensor(**(arguments | changes))


def test_dequantize_per_channel():
    real = make().dequantize()
    assert real.dtype == np.float32
    np.testing.assert_array_equal(real, [[-3.5, 0.0, 3.5], [2.0, 4.0, 6.0]])


def test_dequantize_along_another_axis():
    scale = np.array([1.0, 10.0, 100.0], np.float32)
    q = make(scale=scale, zero_point=np.zeros(3, np.int8), axis=1)
    np.testing.assert_array_equal(q.dequantize(), [[-7, 0, 700], [1, 20, 300]])


def test_dequantize_uint8_with_a_zero_point():
    codes = np.array([0, 128, 255], np.uint8)
    q = QTensor(codes, np.array(0.1, np.float32), np.array(128, np.uint8), activation(8))
    np.testing.assert_array_equal(q.dequantize(), np.array([-128, 0, 127], np.float32) * np.float32(0.1))


def test_empty_codes_are_fine():
    q = QTensor(np.zeros((0, 4), np.int8), np.zeros(0, np.float32), np.zeros(0, np.int8), weight(8), axis=0)
    assert q.dequantize().shape == (0, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": np.zeros((2, 3), np.int16)}, "int16"),
        ({"codes": np.full((2, 3), -8, np.int8)}, "-7..7"),
        ({"scheme": QScheme(bits=2, signed=True, codebook=(-7, 7))}, "range"),
        ({"scale": np.array([0.5, 2.0])}, "float32"),
        ({"scale": np.array([0.5, 0.0], np.float32)}, "positive"),
        ({"scale": np.array([0.5, np.nan], np.float32)}, "finite"),
        ({"scale": np.array([0.5, np.inf], np.float32)}, "finite"),
        ({"scale": np.array([0.5, -1.0], np.float32)}, "positive"),
        ({"scale": np.array(0.5, np.float32)}, "shape"),
        ({"scale": np.ones(3, np.float32)}, "shape"),
        ({"axis": None}, "shape"),
        ({"zero_point": np.zeros(3, np.int8)}, "shape"),
        ({"zero_point": np.zeros(2, np.int32)}, "zero point"),
    ],
)
def test_invariants(changes, message):
    with pytest.raises(QDeployError, match=message):
        make(**changes)
