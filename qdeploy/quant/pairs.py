"""Codes whose pairs stay within a limit: what keeps products from saturating (core/saturation.py), as rounding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qdeploy.core import saturation
from qdeploy.core.scheme import QScheme


def codes_below(scheme: QScheme, limit: int) -> list[int]:
    """For every number 0..``limit``, the largest code of the scheme that does not exceed it; if none, the least."""
    codes = [code for code in scheme.codebook or range(scheme.qmax + 1) if code >= 0]
    return [max((code for code in codes if code <= most), default=codes[0]) for most in range(limit + 1)]


@torch.no_grad()
def widening(steps: Tensor, scheme: QScheme, limit: int) -> Tensor:
    """What each channel's steps [C_out, ...] are to be divided by so that their pairs come within ``limit``: [C_out].

    At least 1. Steps beyond the scheme count as its outermost codes. Rounding may still carry a pair over by one.
    """
    pairs = torch.as_tensor(saturation.pair_indices(tuple(steps.shape)), device=steps.device)
    reachable = F.pad(steps.clamp(scheme.qmin, scheme.qmax).flatten(1), (0, 1))[:, pairs]
    sums = torch.maximum(reachable.clamp_min(0).sum(-1), -reachable.clamp_max(0).sum(-1))
    return (sums.amax(1) / limit).clamp_min(1.0) if sums.numel() else torch.ones(len(steps))


def limit_pairs(codes: Tensor, steps: Tensor, scheme: QScheme, limit: int) -> Tensor:
    """``codes`` [C_out, ...] with every pair of one sign moved to where it sums to ``limit`` at most.

    ``steps``, of their shape and dtype, are what the codes round. A pair goes to the point nearest to its steps: both
    give way alike, and of codes of the scheme the second is the largest that still fits.
    """
    first, second = torch.as_tensor(saturation.pair_indices(tuple(codes.shape)), device=codes.device).unbind(1)
    rows, wanted = (F.pad(x.flatten(1), (0, 1)) for x in (codes, steps))
    a, b, sign = rows[:, first], rows[:, second], rows[:, first].sign()
    over = (a * b > 0) & ((a + b).abs() > limit)
    if not over.any():
        return codes
    below = torch.tensor(codes_below(scheme, limit), dtype=codes.dtype, device=codes.device)
    excess = ((wanted[:, first] + wanted[:, second]) * sign - limit) / 2
    least = below[below > 0].min()
    share = (wanted[:, first] * sign - excess).clamp(least, limit - least).round()
    x = below[share.long()]
    y = below[(limit - x).long()]
    rows[:, first], rows[:, second] = torch.where(over, sign * x, a), torch.where(over, sign * y, b)
    return rows[:, :-1].reshape(codes.shape)
