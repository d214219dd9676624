"""The reference arithmetic against onnxruntime's own kernels, bit for bit, and its edge cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from qdeploy.core import affine
from qdeploy.core.errors import QDeployError
from qdeploy.core.scheme import QScheme, activation, weight
from qdeploy.runtimes.onnxruntime import Runtime

UINT8, INT8 = QScheme(8), QScheme(8, signed=True)
LARGEST = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).tiny)


def kernel(
    op: str, inputs: dict[str, np.ndarray], constants: dict[str, Any], order: str, domain: str = "", **attributes: Any
) -> np.ndarray:
    """Run one operator in onnxruntime. ``order`` lists its inputs; "_" is one left out."""
    types = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in inputs.items()}
    given = ["" if name == "_" else name for name in order.split()]
    graph = helper.make_graph(
        [helper.make_node(op, given, ["y"], domain=domain, **attributes)],
        op,
        [helper.make_tensor_value_info(name, kind, inputs[name].shape) for name, kind in types.items()],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return Runtime(model.SerializeToString(), threads=1).run(inputs)["y"]


def scale_of(rng: np.random.Generator, decades: float = 3.0) -> np.float32:
    return np.float32(10.0 ** rng.uniform(-decades, decades / 3))


# -------------------------------------------------------------------------------------------------------- qparams


@pytest.mark.parametrize("scheme", [activation(8), activation(4), activation(1), INT8], ids=str)
def test_a_range_is_covered_and_zero_is_exact(scheme):
    rng = np.random.default_rng(0)
    for _ in range(300):
        low, high = sorted(rng.normal(size=2) * 10.0 ** rng.uniform(-8, 8))
        scale, zero_point = affine.qparams(low, high, scheme)
        assert scheme.qmin <= zero_point <= scheme.qmax
        lowest, highest = (scheme.qmin - zero_point) * float(scale), (scheme.qmax - zero_point) * float(scale)
        # The zero point is rounded, so the covered interval is shifted by at most half a step.
        assert lowest <= min(low, 0) + 0.5001 * scale
        assert highest >= max(high, 0) - 0.5001 * scale
        codes = affine.quantize(np.zeros(1, np.float32), scale, np.asarray(zero_point), scheme)
        assert affine.dequantize(codes, scale, np.asarray(zero_point)).tolist() == [0.0]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_symmetric_range_has_zero_point_0_and_reaches_its_larger_end(bits):
    for low, high in ((-3.0, 1.0), (-1.0, 3.0), (0.0, 3.0), (2.0, 3.0), (-3.0, -2.0)):
        scale, zero_point = affine.qparams(low, high, weight(bits))
        assert zero_point == 0
        assert scale == np.float32(3 / (2 ** (bits - 1) - 1))


def test_a_relu_range_puts_the_zero_point_on_the_lowest_code():
    assert affine.qparams(0.0, 6.0, activation(8)) == (np.float32(6 / 255), 0)
    assert affine.qparams(0.5, 6.0, activation(8)) == (np.float32(6 / 255), 0)
    assert affine.qparams(-6.0, 0.0, activation(8)) == (np.float32(6 / 255), 255)


@pytest.mark.parametrize("scheme", [activation(8), weight(8)], ids=str)
@pytest.mark.parametrize("value", [0.0, -0.0])
def test_zero_width_keeps_its_only_value(scheme, value):
    scale, zero_point = affine.qparams(value, value, scheme)
    assert scale == 1
    codes = affine.quantize(np.full(3, value, np.float32), scale, np.asarray(zero_point), scheme)
    assert not affine.dequantize(codes, scale, np.asarray(zero_point)).any()


@pytest.mark.parametrize("value", [1e-30, 0.1, -2.5, 1e30, 3e38, LARGEST, -LARGEST])
def test_a_constant_is_kept_to_float32s_precision(value):
    scale, zero_point = affine.qparams(value, value, activation(8))
    codes = affine.quantize(np.full(3, value, np.float32), scale, np.asarray(zero_point), UINT8)
    np.testing.assert_allclose(affine.dequantize(codes, scale, np.asarray(zero_point)), value, rtol=3e-7)


@pytest.mark.parametrize(
    "scheme", [activation(8), activation(1), weight(8), weight(2), QScheme(1, signed=True)], ids=str
)
@pytest.mark.parametrize("low", [-LARGEST, -LARGEST / 3, -1.0, 0.0])
@pytest.mark.parametrize("high", [0.0, 1e-9, LARGEST / 2, LARGEST])
def test_every_code_of_a_huge_range_is_finite(scheme, low, high):
    scale, zero_point = affine.qparams(low, high, scheme)
    ends = np.array([scheme.qmin, scheme.qmax], scheme.dtype)
    assert np.isfinite(affine.dequantize(ends, scale, np.asarray(zero_point))).all()
    assert scale >= TINY


@pytest.mark.parametrize("scheme", [activation(8), weight(8)], ids=str)
def test_a_subnormal_range_gets_a_scale_that_no_kernel_flushes_to_zero(scheme):
    for low, high in ((0.0, 1e-40), (-1e-40, 0.0), (-1e-45, 1e-45), (-1e-38, 1e-38)):
        scale, zero_point = affine.qparams(low, high, scheme)
        assert scale >= TINY
        assert scheme.qmin <= zero_point <= scheme.qmax


@pytest.mark.parametrize(("low", "high"), [(np.nan, 1), (0, np.nan), (-np.inf, 0), (0, np.inf), (1, 0), (0, 1e39)])
def test_a_range_that_is_none_is_refused(low, high):
    with pytest.raises(QDeployError, match="cannot be quantized"):
        affine.qparams(low, high, activation(8))


# ------------------------------------------------------------------------------------ QuantizeLinear and its inverse


@pytest.mark.parametrize("scheme", [UINT8, INT8], ids=["uint8", "int8"])
def test_quantize_is_quantize_linear(scheme):
    rng = np.random.default_rng(1)
    for _ in range(20):
        scale, zero_point = scale_of(rng), scheme.dtype.type(rng.integers(scheme.qmin, scheme.qmax + 1))
        steps = rng.integers(-700, 700, 4000) / 2  # half of them ties
        x = np.concatenate([(steps * scale), rng.normal(0, 100 * scale, 4000), [0.0, -0.0, 1e30, -1e30, 3e38, -3e38]])
        x = np.concatenate([x.astype(np.float32), np.array([np.inf, -np.inf, 1e-45], np.float32)])
        found = kernel("QuantizeLinear", {"x": x}, {"s": scale, "z": zero_point}, "x s z")
        np.testing.assert_array_equal(affine.quantize(x, scale, zero_point, scheme), found)


def test_quantize_and_dequantize_along_an_axis():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(4, 5, 3)).astype(np.float32)
    for axis, channels in ((0, 4), (1, 5), (2, 3)):
        scale = rng.uniform(0.001, 0.1, channels).astype(np.float32)
        zero_point = rng.integers(0, 256, channels).astype(np.uint8)
        constants = {"s": scale, "z": zero_point}
        codes = kernel("QuantizeLinear", {"x": x}, constants, "x s z", axis=axis)
        np.testing.assert_array_equal(affine.quantize(x, scale, zero_point, UINT8, axis), codes)
        real = kernel("DequantizeLinear", {"q": codes}, constants, "q s z", axis=axis)
        np.testing.assert_array_equal(affine.dequantize(codes, scale, zero_point, axis), real)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32])
def test_dequantize_is_dequantize_linear(dtype):
    rng = np.random.default_rng(3)
    limits = np.iinfo(dtype)
    codes = rng.integers(limits.min, limits.max, 5000, endpoint=True).astype(dtype)
    for _ in range(20):
        scale = scale_of(rng)
        zero_point = dtype(0) if dtype is np.int32 else dtype(rng.integers(limits.min, limits.max, endpoint=True))
        found = kernel("DequantizeLinear", {"q": codes}, {"s": scale, "z": zero_point}, "q s z")
        np.testing.assert_array_equal(affine.dequantize(codes, scale, zero_point), found)


# ---------------------------------------------------------------------------------------------------- QLinearConv

CONVOLUTIONS = {
    "3x3": {"x": (2, 8, 9, 7), "w": (16, 8, 3, 3), "pads": (1, 1, 1, 1)},
    "1x1": {"x": (2, 16, 5, 5), "w": (8, 16, 1, 1)},
    "stride 2": {"x": (1, 3, 11, 12), "w": (8, 3, 3, 3), "pads": (1, 1, 1, 1), "strides": (2, 2)},
    "uneven strides": {"x": (1, 3, 11, 12), "w": (8, 3, 3, 2), "strides": (3, 2)},
    "padding on one side": {"x": (2, 4, 8, 8), "w": (4, 4, 3, 3), "pads": (0, 1, 2, 0), "strides": (2, 2)},
    "dilation": {"x": (2, 4, 12, 12), "w": (4, 4, 3, 3), "pads": (2, 3, 2, 3), "dilations": (2, 3)},
    "groups": {"x": (2, 12, 6, 6), "w": (8, 3, 3, 3), "pads": (1, 1, 1, 1), "group": 4},
    "depthwise": {"x": (2, 16, 8, 8), "w": (16, 1, 3, 3), "pads": (1, 1, 1, 1), "group": 16},
    "depthwise with two outputs a channel": {"x": (2, 6, 8, 8), "w": (12, 1, 3, 3), "group": 6},
    "depthwise 5x5, stride 2": {"x": (1, 8, 9, 9), "w": (8, 1, 5, 5), "pads": (2,) * 4, "group": 8, "strides": (2, 2)},
    "one channel in": {"x": (2, 1, 8, 8), "w": (5, 1, 3, 3)},
    "one channel out": {"x": (2, 5, 8, 8), "w": (1, 5, 3, 3)},
    "the kernel covers the image": {"x": (8, 4, 5, 5), "w": (5, 4, 5, 5)},
    "1-D": {"x": (2, 6, 20), "w": (8, 6, 3), "pads": (1, 1), "strides": (2,)},
    "1-D dilation": {"x": (2, 6, 20), "w": (8, 6, 3), "pads": (2, 0), "dilations": (3,)},
    "1-D depthwise": {"x": (2, 6, 20), "w": (6, 1, 3), "pads": (1, 1), "group": 6},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv_is_qlinear_conv(name):
    case = {**CONVOLUTIONS[name]}
    rng = np.random.default_rng(len(name))
    shape, kernel_shape = case.pop("x"), case.pop("w")
    spatial = len(shape) - 2
    for round_number in range(3):
        x = rng.integers(0, 256, shape).astype(np.uint8)
        # 7-bit weights: their pairs cannot saturate int16 on x86 CPUs without VNNI.
        w = rng.integers(-63, 64, kernel_shape).astype(np.int8)
        x_zero = int(rng.integers(0, 256)) if round_number else 0
        bias = rng.integers(-(2**13), 2**13, kernel_shape[0]).astype(np.int32) if round_number else None
        accumulator = affine.conv_accumulate(
            x, x_zero, w, bias,
            strides=case.get("strides", (1,) * spatial), pads=case.get("pads", (0,) * 2 * spatial),
            dilations=case.get("dilations", (1,) * spatial), group=case.get("group", 1),
        )  # fmt: skip
        assert np.abs(accumulator).max() <= affine.accumulator_bound(w, bias, x_zero, UINT8)
        x_scale, w_scale = scale_of(rng), rng.uniform(0.03, 0.1, kernel_shape[0]).astype(np.float32)
        # An output quantizer that fits: one that saturates would test nothing else.
        real = accumulator * (x_scale * w_scale).reshape(-1, *[1] * spatial)
        y_scale, y_zero = affine.qparams(float(real.min()) * 0.8, float(real.max()) * 0.8, UINT8)
        constants = {
            "xs": x_scale, "xz": np.uint8(x_zero), "w": w, "ws": w_scale, "wz": np.zeros(kernel_shape[0], np.int8),
            "ys": y_scale, "yz": np.uint8(y_zero), **({} if bias is None else {"b": bias}),
        }  # fmt: skip
        order = "x xs xz w ws wz ys yz" + ("" if bias is None else " b")
        found = kernel("QLinearConv", {"x": x}, constants, order, **case)
        codes = affine.requantize(accumulator, affine.multiplier(x_scale, w_scale, y_scale), y_zero, UINT8)
        np.testing.assert_array_equal(codes, found)
        assert len(np.unique(found)) > min(found.size // 3, 100)


def test_conv_ties_round_to_even():
    """Accumulators 1, 3, 5 ... times exactly one half."""
    x = np.arange(1, 256, 2, dtype=np.uint8).reshape(1, 1, 1, -1)
    ones = {"xs": np.float32(1), "xz": np.uint8(0), "w": np.ones((1, 1, 1, 1), np.int8), "ws": np.ones(1, np.float32)}
    constants = {**ones, "wz": np.zeros(1, np.int8), "ys": np.float32(2), "yz": np.uint8(3)}
    found = kernel("QLinearConv", {"x": x}, constants, "x xs xz w ws wz ys yz")
    codes = affine.requantize(x.astype(np.int64), np.float32(0.5), 3, UINT8)
    np.testing.assert_array_equal(codes, found)
    assert codes[0, 0, 0, :4].tolist() == [3, 5, 5, 7]


# ---------------------------------------------------------------------------------------------------------- QGemm


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n", "k", "m"), [(1, 7, 1), (3, 64, 10), (17, 300, 33)])
def test_gemm_is_qgemm_with_and_without_an_output_quantizer(n, k, m, bias, per_channel):
    rng = np.random.default_rng(n + m)
    x, w = rng.integers(0, 256, (n, k)).astype(np.uint8), rng.integers(-63, 64, (m, k)).astype(np.int8)
    x_zero, y_zero = (np.uint8(z) for z in rng.integers(0, 256, 2))
    w_scale = rng.uniform(0.001, 0.02, m if per_channel else ()).astype(np.float32)
    x_scale = scale_of(rng)
    y_scale = np.float32(x_scale * np.mean(w_scale) * 40 * np.sqrt(k) / 2)
    b = rng.integers(-5000, 5000, m).astype(np.int32) if bias else None
    constants = {"xs": x_scale, "xz": x_zero, "w": w, "ws": w_scale, "wz": np.zeros(w_scale.shape, np.int8)}
    constants |= {} if b is None else {"b": b}
    accumulator = affine.gemm_accumulate(x, int(x_zero), w, b)
    attributes = {"transB": 1, "alpha": 1.0, "domain": "com.microsoft"}
    order = f"x xs xz w ws wz {'b' if bias else '_'}"
    found = kernel("QGemm", {"x": x}, constants, order, **attributes)
    np.testing.assert_array_equal(affine.gemm_float(accumulator, x_scale, w_scale), found)
    quantizer = {"ys": y_scale, "yz": y_zero}
    found = kernel("QGemm", {"x": x}, constants | quantizer, order + " ys yz", **attributes)
    factor = affine.multiplier(x_scale, w_scale, y_scale)
    np.testing.assert_array_equal(affine.requantize(accumulator, factor, int(y_zero), UINT8), found)


# ------------------------------------------------------------------------------------------------------ accumulators


def test_no_accumulator_passes_its_bound():
    """The worst inputs there are: every code at the end that its weight's sign asks for."""
    rng = np.random.default_rng(4)
    w = rng.integers(-127, 128, (6, 40)).astype(np.int8)
    bias = rng.integers(-(2**20), 2**20, 6).astype(np.int32)
    for zero_point in (0, 17, 128, 255):
        bound = affine.accumulator_bound(w, bias, zero_point, UINT8)
        for sign in (1, -1):
            x = np.where(sign * w > 0, 255, 0).astype(np.uint8)
            found = affine.gemm_accumulate(x, zero_point, w, bias)
            assert np.abs(found).max() <= bound
            # Also the sum of raw codes, before a kernel subtracts what the zero point adds.
            assert np.abs(x.astype(np.int64) @ w.T.astype(np.int64)).max() <= bound
    assert affine.accumulator_bound(w, None, 0, UINT8) == int(np.abs(w.astype(np.int64)).sum(axis=1).max()) * 255


def test_an_empty_weight_needs_no_accumulator():
    assert affine.accumulator_bound(np.zeros((0, 4), np.int8), None, 0, UINT8) == 0
    assert affine.accumulator_bound(np.zeros((4, 0), np.int8), np.array([5, -9, 0, 1], np.int32), 3, UINT8) == 9


def test_sums_beyond_float32_stay_exact():
    x, w = np.full((2, 4000), 255, np.uint8), np.full((3, 4000), 127, np.int8)
    w[0, 0] = 126
    found = affine.gemm_accumulate(x, 0, w, None)
    assert found[0].tolist() == [255 * 127 * 4000 - 255, 255 * 127 * 4000, 255 * 127 * 4000]
