"""QuantizeLinear and DequantizeLinear as PyTorch operators.

They survive torch.export as single nodes, so the exporter translates them one to one, and the converted PyTorch graph
computes with the very codes that the artifact holds.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("qdeploy::quantize", mutates_args=())
def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Codes clip(round_half_even(x / scale) + zero_point, qmin, qmax), of ``zero_point``'s dtype.

    ``scale`` and ``zero_point`` are scalars; ``qmin`` and ``qmax`` lie in the range of that dtype.
    """
    steps = torch.round(x / scale) + zero_point
    return steps.clamp(qmin, qmax).to(zero_point.dtype)


@quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    return torch.empty_like(x, dtype=zero_point.dtype)


@torch.library.custom_op("qdeploy::dequantize", mutates_args=())
def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    """(codes - zero_point) * scale, float32; ``scale`` a scalar (``axis`` -1) or a vector along ``axis``."""
    if axis >= 0:
        shape = [1] * codes.dim()
        shape[axis] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    return (codes.to(torch.int32) - zero_point.to(torch.int32)).to(torch.float32) * scale


@dequantize.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)
