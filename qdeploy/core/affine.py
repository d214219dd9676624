"""Affine quantization arithmetic, bit-exact with onnxruntime's CPU kernels, in numpy.

real = (code - zero_point) * scale, with float32 scales. Rounding is half to even everywhere, as in ONNX. Every
function states the float32 operations that the kernel performs and their order, because the order is the answer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import QDeployError
from qdeploy.core.scheme import QScheme

Codes = NDArray[Any]  # int8 or uint8
Float32 = NDArray[np.float32]

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)  # below it float32 is subnormal, and kernels may flush it to zero
LARGEST = float(np.finfo(np.float32).max)


def qparams(low: float, high: float, scheme: QScheme) -> tuple[np.float32, int]:
    """Scale and zero point that map the real range [low, high], widened to hold 0, onto the scheme's codes.

    Zero is always exactly representable (padding, ReLU), as in Jacob et al. 2018, eq. 1 and section 3. A range of
    zero width gives scale 1: every value in it is then exact. The real value of every code is a finite float32.

    QDeployError: limits that are NaN, in the wrong order, or beyond float32.
    """
    if not (-LARGEST <= low <= high <= LARGEST):
        raise QDeployError(f"A range from {low} to {high} cannot be quantized.")
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if scheme.symmetric:
        scale = np.float32(max(-low, high) / scheme.qmax)
        return (_finite(scale, scheme.qmax) if scale >= SMALLEST_SCALE else np.float32(1.0)), 0
    scale = np.float32(min((high - low) / (scheme.qmax - scheme.qmin), LARGEST))
    if scale < SMALLEST_SCALE:
        return np.float32(1.0), scheme.qmin if low == 0 else scheme.qmax
    zero_point = int(min(max(round(scheme.qmin - low / float(scale)), scheme.qmin), scheme.qmax))
    return _finite(scale, max(scheme.qmax - zero_point, zero_point - scheme.qmin)), zero_point


def _finite(scale: np.float32, steps: int) -> np.float32:
    """The scale, made smaller where ``steps`` of it leave float32: only ranges as large as float32's own do."""
    largest = np.nextafter(np.float32(LARGEST / steps), np.float32(0))
    return np.float32(min(scale, largest))


def quantize(
    x: NDArray[np.floating[Any]], scale: Any, zero_point: Any, scheme: QScheme, axis: int | None = None
) -> Codes:
    """QuantizeLinear: saturate(round_half_even(x / scale) + zero_point), in float32."""
    scale, zero_point = _along(scale, axis, x.ndim), _along(zero_point, axis, x.ndim)
    with np.errstate(over="ignore"):  # an infinite step saturates like any other that is too large
        steps = np.rint(x.astype(np.float32) / scale.astype(np.float32))
    # Clipping before the cast: a float beyond int32 has no defined integer value.
    steps = np.clip(steps, np.float32(scheme.qmin - 256), np.float32(scheme.qmax + 256))
    codes = np.clip(steps.astype(np.int32) + zero_point.astype(np.int32), scheme.qmin, scheme.qmax)
    return np.asarray(codes, scheme.dtype)


def dequantize(codes: NDArray[Any], scale: Any, zero_point: Any, axis: int | None = None) -> Float32:
    """DequantizeLinear: float32(code - zero_point) * scale."""
    scale, zero_point = _along(np.asarray(scale, np.float32), axis, codes.ndim), _along(zero_point, axis, codes.ndim)
    real: Float32 = (codes.astype(np.int32) - zero_point.astype(np.int32)).astype(np.float32) * scale
    return real


def requantize(accumulator: NDArray[np.int64], multiplier: Float32, zero_point: int, scheme: QScheme) -> Codes:
    """The output stage of QLinearConv and QGemm: saturate(round_half_even(float32(acc) * multiplier) + zero_point).

    ``accumulator`` [N, C, ...] are int32 values; ``multiplier`` (float32, scalar or [C]) is
    float32(float32(x_scale * w_scale) / y_scale).
    """
    per_channel = _along(multiplier, 1, accumulator.ndim) if np.ndim(multiplier) else np.asarray(multiplier)
    with np.errstate(over="ignore"):
        scaled = accumulator.astype(np.float32) * per_channel.astype(np.float32)
    # The kernel clips in float, relative to the zero point, before it rounds; both orders give the same code.
    scaled = np.clip(scaled, np.float32(scheme.qmin - zero_point), np.float32(scheme.qmax - zero_point))
    return np.asarray(np.rint(scaled).astype(np.int32) + zero_point, scheme.dtype)


def multiplier(x_scale: Any, w_scale: Any, y_scale: Any) -> Float32:
    """What QLinearConv multiplies its accumulator with: (x_scale * w_scale) / y_scale, rounded to float32 twice."""
    product = np.asarray(x_scale, np.float32) * np.asarray(w_scale, np.float32)
    return np.asarray(product / np.asarray(y_scale, np.float32), np.float32)


def conv_accumulate(
    x: Codes,
    x_zero_point: int,
    weight: Codes,
    bias: NDArray[np.int32] | None,
    *,
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    group: int,
) -> NDArray[np.int64]:
    """The int32 accumulator of a convolution on codes, as int64.

    ``x`` [N, C, *spatial], ``weight`` [M, C/group, *kernel] with zero point 0, ``bias`` [M]; ``pads`` in ONNX order
    (all begins, then all ends); one or two spatial axes. Padding is the zero point, which means a real 0.
    """
    spatial = x.ndim - 2
    centred = x.astype(np.int32) - x_zero_point
    if any(pads):
        widths = [(0, 0), (0, 0), *((pads[i], pads[spatial + i]) for i in range(spatial))]
        centred = np.pad(centred, widths)
    kernel = weight.shape[2:]
    extent = tuple(d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(centred, extent, axis=tuple(range(2, 2 + spatial)))
    every: Any = (slice(None), slice(None), *(slice(None, None, s) for s in strides))
    taps: Any = (..., *(slice(None, None, d) for d in dilations))
    windows = windows[every][taps]
    n, out = x.shape[0], windows.shape[2 : 2 + spatial]
    # [N, group, C/group, *out, *kernel] -> [N, group, K, L]
    windows = windows.reshape(n, group, x.shape[1] // group, *out, *kernel)
    order = (0, 1, 2, *range(3 + spatial, 3 + 2 * spatial), *range(3, 3 + spatial))
    columns = windows.transpose(order).reshape(n, group, -1, int(np.prod(out)))
    rows = weight.reshape(group, weight.shape[0] // group, -1)
    return _with_bias(_exact_matmul(rows, columns).reshape(n, weight.shape[0], *out), bias)


def gemm_accumulate(x: Codes, x_zero_point: int, weight: Codes, bias: NDArray[np.int32] | None) -> NDArray[np.int64]:
    """The int32 accumulator of x @ weight.T on codes, as int64: ``x`` [N, K], ``weight`` [M, K], ``bias`` [M]."""
    return _with_bias(_exact_matmul(x.astype(np.int32) - x_zero_point, weight.T), bias)


def matmul_accumulate(a: Codes, a_zero_point: int, b: Codes, b_zero_point: int) -> NDArray[np.int64]:
    """The int32 accumulator of a @ b on codes of two activations, as int64: ``a`` [..., N, K], ``b`` [..., K, M]."""
    return _exact_matmul(a.astype(np.int32) - a_zero_point, b.astype(np.int32) - b_zero_point)


def gemm_float(accumulator: NDArray[np.int64], x_scale: Any, w_scale: Any) -> Float32:
    """QGemm without an output quantizer, MatMulIntegerToFloat: float32(acc) * float32(x_scale * w_scale)."""
    product = np.asarray(x_scale, np.float32) * np.asarray(w_scale, np.float32)
    return accumulator.astype(np.float32) * product


def accumulator_bound(weight: Codes, bias: NDArray[np.int32] | None, x_zero_point: int, x_scheme: QScheme) -> int:
    """The largest magnitude that any partial sum of one output can reach, for every input: [M, ...] codes -> int.

    Partial sums are bounded by the sum of magnitudes, so a result below 2**31 proves that int32 never wraps,
    whatever the order in which a kernel adds.
    """
    if len(weight) == 0:
        return 0
    reach = max(x_scheme.qmax - x_zero_point, x_zero_point - x_scheme.qmin)
    # Kernels add zero-point corrections to sums of raw codes: the raw codes' reach bounds those sums too.
    reach = max(reach, x_scheme.qmax - x_scheme.qmin) + abs(x_zero_point)
    sums = np.abs(weight.astype(np.int64)).reshape(weight.shape[0], -1).sum(axis=1) * reach
    if bias is not None:
        sums = sums + np.abs(bias.astype(np.int64))
    return int(sums.max())


def _exact_matmul(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.int64]:
    """An integer matrix product through BLAS: exact, as every partial sum is an integer that the float type holds."""
    reach = int(np.abs(b).max(initial=0)) * int(np.abs(a.astype(np.int32)).max(initial=0)) * a.shape[-1]
    dtype = np.float32 if reach < 2**24 else np.float64
    if reach >= 2**53:
        raise QDeployError("An integer product too large for exact arithmetic in float64.")
    return np.asarray(np.matmul(a.astype(dtype), b.astype(dtype)), np.int64)


def _with_bias(accumulator: NDArray[np.int64], bias: NDArray[np.int32] | None) -> NDArray[np.int64]:
    if bias is None:
        return accumulator
    return np.asarray(accumulator + _along(bias.astype(np.int64), 1, accumulator.ndim))


def _along(value: Any, axis: int | None, ndim: int) -> NDArray[Any]:
    array = np.asarray(value)
    if axis is None or array.ndim == 0:
        return array
    shape = [1] * ndim
    shape[axis] = -1
    return array.reshape(shape)
