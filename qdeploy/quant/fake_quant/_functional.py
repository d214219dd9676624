"""The rounding that trains: exact codes forwards, straight-through gradients backwards, few passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from qdeploy.core.affine import SMALLEST_SCALE
from qdeploy.core.scheme import QScheme
from qdeploy.quant.pairs import limit_pairs


def fake_quantize(
    x: Tensor, scale: Tensor, dequantize_scale: Tensor, low: int, high: int, *, saturated_only: bool = False
) -> Tensor:
    """clamp(round_half_even(x / scale), low, high) * dequantize_scale: QuantizeLinear, DequantizeLinear.

    ``x`` float32 of any shape, both scales float32 scalars on its device, ``low`` and ``high`` the lowest and highest
    code less the zero point. The division is a true one, as in onnxruntime. Gradients, with v = x / scale:

    - x: passes, times dequantize_scale / scale, where low < v < high, and is 0 elsewhere;
    - scale: the one of v, through that same window;
    - dequantize_scale: the codes; with ``saturated_only``, those outside of the window.

    One tensor as both scales gives Esser et al. 2020, eq. 3; a detached ``scale`` and ``saturated_only`` give Choi et
    al. 2018, eq. 3.
    """
    made: Tensor = _FakeQuantize.apply(x, scale, dequantize_scale, low, high, saturated_only)  # type: ignore[no-untyped-call]
    return made


def straight_through(steps: Tensor, scheme: QScheme, low: float, high: float, limit: int | None = None) -> Tensor:
    """What ``rounded`` gives; the gradient passes where low < steps < high.

    Bengio, Leonard and Courville 2013: the derivative of rounding is taken to be 1.
    """
    codes: Tensor = _StraightThrough.apply(steps, scheme, low, high, limit)  # type: ignore[no-untyped-call]
    return codes


def rounded(steps: Tensor, scheme: QScheme, limit: int | None = None) -> Tensor:
    """The float codes nearest to ``steps`` [C_out, ...], in the scheme, and with a ``limit`` within it (pairs.py)."""
    codes = nearest(steps, scheme)
    return codes if limit is None else limit_pairs(codes, steps, scheme, limit)


def nearest(steps: Tensor, scheme: QScheme) -> Tensor:
    """The code nearest to each of ``steps``, float32, as ``quant.codes.nearest_codes`` breaks ties."""
    if scheme.codebook is None:
        return steps.round().clamp_(scheme.qmin, scheme.qmax)
    if scheme.codebook == (-1, 1):
        return torch.where(steps >= 0, 1.0, -1.0)
    magnitudes = torch.tensor([code for code in scheme.codebook if code >= 0], dtype=steps.dtype, device=steps.device)
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2
    return torch.copysign(magnitudes[torch.bucketize(steps.abs(), middles)], steps)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """``x`` itself, and ``factor`` times its gradient."""
    same: Tensor = _ScaleGradient.apply(x, factor)  # type: ignore[no-untyped-call]
    return same


def positive(x: Tensor) -> Tensor:
    """|x|, at least the smallest normal float32: a learned scale that an optimizer's step carries below 0 turns back.

    Above 0 value and gradient are those of ``x``.
    """
    return x.abs().clamp_min(SMALLEST_SCALE)


def along_axis_0(vector: Tensor, like: Tensor) -> Tensor:
    """A vector [C] shaped to broadcast along axis 0 of ``like`` [C, ...]."""
    return vector.reshape(-1, *[1] * (like.dim() - 1))


class _FakeQuantize(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, dequantize_scale: Tensor, low: int, high: int, saturated_only: bool
    ) -> Tensor:
        y = torch.div(x, scale).round_().clamp_(low, high).mul_(dequantize_scale)
        ctx.low, ctx.high, ctx.saturated_only = low, high, saturated_only
        ctx.one_scale = scale.data_ptr() == dequantize_scale.data_ptr()  # the same tensor, or one detached
        # Both live on anyway, in the layers before and behind; x / scale is cheaper made again than kept.
        ctx.save_for_backward(x, y, scale, dequantize_scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, dequantize_scale = ctx.saved_tensors
        inside = torch.ops.aten.hardtanh_backward(gradient, x / scale, ctx.low, ctx.high)
        scale_gradient = dequantize_gradient = None
        if ctx.needs_input_grad[1]:
            scale_gradient = -_dot(inside, x) / scale
            if not ctx.one_scale:
                scale_gradient = scale_gradient * (dequantize_scale / scale)
        if ctx.needs_input_grad[2]:
            total = _dot(gradient, y)
            dequantize_gradient = (total - _dot(inside, y) if ctx.saturated_only else total) / dequantize_scale
        if not ctx.one_scale:
            inside.mul_(dequantize_scale / scale)
        return inside, scale_gradient, dequantize_gradient, None, None, None


class _StraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, steps: Tensor, scheme: QScheme, low: float, high: float, limit: int | None) -> Tensor:
        ctx.save_for_backward(steps)
        ctx.low, ctx.high = low, high
        return rounded(steps, scheme, limit)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (steps,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, steps, ctx.low, ctx.high), None, None, None, None


class _ScaleGradient(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of products, in one pass."""
    return torch.dot(a.reshape(-1), b.reshape(-1))
