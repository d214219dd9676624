"""QLinearAdd and QLinearMul as onnxruntime's kernels compute them on different CPUs, and where these disagree.

Both take two tensors of 8-bit codes, so there are at most 65,536 inputs to look at: what is said here of a pair of
scales is proven, not sampled. x86 with AVX2 and later fuses multiplications and additions, older x86 does not, ARM64
adds in fixed point and rounds half away from zero, and WebAssembly computes what the operator's definition says.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.scheme import QScheme

EVERY_PAIR = 1 << 16  # of codes of 8 bits

Codes = NDArray[Any]
Kernel = Callable[["Operand", "Operand", "Operand", Codes, Codes], Codes]


@dataclass(frozen=True, slots=True)
class Operand:
    """An operand or the result: real = (code - zero_point) * scale, with the codes of ``scheme``."""

    scale: float
    zero_point: int
    scheme: QScheme

    @property
    def codes(self) -> Codes:
        """Every code that there is."""
        return np.arange(self.scheme.qmin, self.scheme.qmax + 1, dtype=self.scheme.dtype)


def answer(op: str, a: Operand, b: Operand, y: Operand, left: Codes, right: Codes) -> Codes:
    """What ``op``, "Add" or "Mul", gives on this machine for the codes of two tensors, broadcast as in ONNX.

    Where one of them is a single code against a row of the other's, as in [N, C, H, W] + [N, C, 1, 1], the kernel takes
    that one for the second.
    """
    arm = platform.machine().lower() in ("aarch64", "arm64")
    kernel = {"Add": add_fixed_point if arm else add_fused, "Mul": mul_fused if arm else mul_unfused}[op]
    if _repeats(left.shape, right.shape):
        return kernel(b, a, y, right, left)
    return kernel(a, b, y, left, right)


def disagreements(op: str, a: Operand, b: Operand, y: Operand) -> int:
    """For how many pairs of codes not all kernels of ``op``, "Add" or "Mul", give one and the same answer.

    All of them where results leave int32, in which kernels round: scales that are zero, no numbers, or far apart.
    """
    if not _largest(op, a, b, y) < 2.0**31:
        return EVERY_PAIR
    grid = np.meshgrid(a.codes, b.codes, indexing="ij")
    # Where one operand is broadcast, kernels take it for the second.
    orders = ((a, b, *grid), (b, a, *grid[::-1]))
    answers = [kernel(p, q, y, left, right) for kernel, (p, q, left, right) in product(KERNELS[op], orders)]
    differ = np.zeros(grid[0].shape, bool)
    for answer in answers[1:]:
        differ |= answer != answers[0]
    return int(differ.sum())


def _largest(op: str, a: Operand, b: Operand, y: Operand) -> float:
    """What no result exceeds, in steps of ``y``; NaN or infinite for scales that are no scales."""
    scales = [np.float64(operand.scale) for operand in (a, b, y)]
    if not all(scale > 0 for scale in scales):
        return math.nan
    reach = 255 * (scales[0] + scales[1]) if op == "Add" else 255 * 255 * scales[0] * scales[1]
    return float(reach / scales[2]) + 255


def add_fused(a: Operand, b: Operand, y: Operand, left: Codes, right: Codes) -> Codes:
    """x86 with AVX2 and later: fma(a, ra, fma(b, rb, y_zp - (ra a_zp + rb b_zp))), ra = a_scale / y_scale, rb alike."""
    ratio_a, ratio_b = _ratios(a, b, y)
    # The compiler contracts the kernel's fixed part as well: fma(ratio_a, a_zp, ratio_b * b_zp).
    offset = _fma(np.float32(a.zero_point), ratio_a, ratio_b * np.float32(b.zero_point))
    fixed = np.float32(y.zero_point) - offset
    return _saturate(_fma(left.astype(np.float32), ratio_a, _fma(right.astype(np.float32), ratio_b, fixed)), y)


def add_unfused(a: Operand, b: Operand, y: Operand, left: Codes, right: Codes) -> Codes:
    """x86 without FMA: ((y_zp - (ra a_zp + rb b_zp)) + a ra) + b rb, every operation rounded to float32."""
    ratio_a, ratio_b = _ratios(a, b, y)
    fixed = np.float32(y.zero_point) - (ratio_a * np.float32(a.zero_point) + ratio_b * np.float32(b.zero_point))
    return _saturate((fixed + left.astype(np.float32) * ratio_a) + right.astype(np.float32) * ratio_b, y)


def add_fixed_point(a: Operand, b: Operand, y: Operand, left: Codes, right: Codes) -> Codes:
    """ARM64: 22-bit multipliers, a shift that rounds half away from zero; for ratios in [2^-14, 2^8)."""
    ratios = _ratios(a, b, y)
    shift = 21 - int(np.floor(np.log2(max(ratios))))
    factors = [int(np.rint(ratio * np.float32(2.0**shift))) for ratio in ratios]
    if not (min(ratios) >= 2.0**-14 and max(ratios) < 256 and 13 <= shift <= 31 and max(factors) < 1 << 22):
        return add_plain(a, b, y, left, right)
    sums = (left.astype(np.int64) - a.zero_point) * factors[0] + (right.astype(np.int64) - b.zero_point) * factors[1]
    rounded = (sums + (sums >> 63) + (1 << (shift - 1))) >> shift
    within = np.clip(np.clip(rounded, -(2**15), 2**15 - 1) + y.zero_point, y.scheme.qmin, y.scheme.qmax)
    return np.asarray(within, y.scheme.dtype)


def add_plain(a: Operand, b: Operand, y: Operand, left: Codes, right: Codes) -> Codes:
    """WebAssembly, and ARM64 beyond its fixed point: dequantize, add, divide by the scale."""
    return _requantize(_real(left, a) + _real(right, b), y)


def mul_unfused(a: Operand, b: Operand, y: Operand, left: Codes, right: Codes) -> Codes:
    """x86: float32((a - a_zp) (b - b_zp)) * ratio + y_zp, every operation rounded to float32."""
    products, ratio = _products(a, b, y, left, right)
    return _saturate(products * ratio + np.float32(y.zero_point), y)


def mul_fused(a: Operand, b: Operand, y: Operand, left: Codes, right: Codes) -> Codes:
    """ARM64: the same in one fused multiply-add."""
    products, ratio = _products(a, b, y, left, right)
    return _saturate(_fma(products, ratio, np.float32(y.zero_point)), y)


def mul_plain(a: Operand, b: Operand, y: Operand, left: Codes, right: Codes) -> Codes:
    """WebAssembly: dequantize, multiply, divide by the scale."""
    return _requantize(_real(left, a) * _real(right, b), y)


KERNELS: dict[str, tuple[Kernel, ...]] = {
    "Add": (add_fused, add_unfused, add_fixed_point, add_plain),
    "Mul": (mul_unfused, mul_fused, mul_plain),
}


def _ratios(a: Operand, b: Operand, y: Operand) -> tuple[np.float32, np.float32]:
    return np.float32(a.scale) / np.float32(y.scale), np.float32(b.scale) / np.float32(y.scale)


def _products(a: Operand, b: Operand, y: Operand, left: Codes, right: Codes) -> tuple[NDArray[np.float32], np.float32]:
    products = (left.astype(np.int32) - a.zero_point) * (right.astype(np.int32) - b.zero_point)
    return products.astype(np.float32), np.float32(a.scale) * np.float32(b.scale) / np.float32(y.scale)


def _fma(a: Any, b: Any, c: Any) -> Any:
    """float32 fma(a, b, c): of integers ``a`` the float64 product is exact, and so is the sum for every real scale."""
    exact = np.asarray(a, np.float64) * np.asarray(b, np.float64) + np.asarray(c, np.float64)
    return exact.astype(np.float32)


def _repeats(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether broadcasting repeats ``a`` along the innermost axis that is longer than 1."""
    for i in range(1, max(len(a), len(b)) + 1):
        in_a, in_b = (shape[-i] if i <= len(shape) else 1 for shape in (a, b))
        if max(in_a, in_b) > 1:
            return in_a == 1
    return False


def _real(codes: Codes, operand: Operand) -> NDArray[np.float32]:
    return np.asarray((codes.astype(np.int32) - operand.zero_point).astype(np.float32) * np.float32(operand.scale))


def _requantize(real: NDArray[np.float32], y: Operand) -> Codes:
    steps = real / np.float32(y.scale)
    steps = np.clip(steps, np.float32(y.scheme.qmin - y.zero_point), np.float32(y.scheme.qmax - y.zero_point))
    return _saturate(steps + np.float32(y.zero_point), y)


def _saturate(value: NDArray[np.float32], y: Operand) -> Codes:
    return np.asarray(np.clip(np.rint(value), y.scheme.qmin, y.scheme.qmax), y.scheme.dtype)
