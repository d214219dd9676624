"""Codes whose pairs stay within a limit: what keeps products from saturating (core/saturation.py), as rounding."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from qdeploy.core.scheme import QScheme


def codes_below(scheme: QScheme, limit: int) -> list[int]:
    """For every number 0..``limit``, the largest code of the scheme that does not exceed it; if none, the least."""
    codes = [code for code in scheme.codebook or range(scheme.qmax + 1) if code >= 0]
    return [max((code for code in codes if code <= most), default=codes[0]) for most in range(limit + 1)]


def _lined_up(values: Tensor) -> Tensor:
    """``values`` [C_out, ...] with the two of every pair at 2k and 2k + 1 of axis 1 (saturation.pair_indices).

    Without a copy where the input channels are even in number: a pair lies within a kernel position then.
    """
    if values.shape[1] % 2 == 0:
        return values
    rows = values.movedim(1, -1).flatten(1)
    return F.pad(rows, (0, rows.shape[1] % 2))


def _put_back(lined: Tensor, shape: torch.Size) -> Tensor:
    """What ``_lined_up`` made of values of ``shape``, in that shape."""
    if shape[1] % 2 == 0:
        return lined
    rows = lined[:, : math.prod(shape[1:])]
    return rows.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()


@torch.no_grad()
def widening(steps: Tensor, scheme: QScheme, limit: int) -> Tensor:
    """What each channel's steps [C_out, ...] are to be divided by so that their pairs come within ``limit``: [C_out].

    At least 1. Steps beyond the scheme count as its outermost codes. Rounding may still carry a pair over by one.
    """
    if not steps.numel():
        return torch.ones(len(steps), device=steps.device)
    reachable = _lined_up(steps.clamp(scheme.qmin, scheme.qmax))
    # Two of one sign count together, two of different signs each alone, which is more than their sum.
    together = (reachable[:, 0::2] + reachable[:, 1::2]).flatten(1).abs().amax(1)
    alone = reachable.flatten(1).abs().amax(1)
    return (torch.maximum(together, alone) / limit).clamp_min(1.0)


def limit_pairs(codes: Tensor, steps: Tensor, scheme: QScheme, limit: int) -> Tensor:
    """``codes`` [C_out, ...] with every pair of one sign moved to where it sums to ``limit`` at most.

    ``steps``, of their shape and dtype, are what the codes round. A pair goes to the point nearest to its steps: both
    give way alike, and of codes of the scheme the second is the largest that still fits.
    """
    lined, wanted = _lined_up(codes), _lined_up(steps)
    first, second = lined[:, 0::2], lined[:, 1::2]
    # Few pairs are beyond, so all else is done with those alone.
    over = ((first + second).abs() > limit).nonzero(as_tuple=True)
    one_sign = first[over] * second[over] > 0
    over = tuple(axis[one_sign] for axis in over)
    if not len(over[0]):
        return codes
    below = torch.tensor(codes_below(scheme, limit), dtype=codes.dtype, device=codes.device)
    sign, share = first[over].sign(), wanted[:, 0::2][over]
    excess = ((share + wanted[:, 1::2][over]) * sign - limit) / 2
    least = below[below > 0].min()
    x = below[(share * sign - excess).clamp(least, limit - least).round().long()]
    y = below[(limit - x).long()]
    made = lined.clone()
    made[:, 0::2][over], made[:, 1::2][over] = sign * x, sign * y
    return _put_back(made, codes.shape)
