"""Whether products of codes can saturate: a proof from the weights alone, for every input and on every CPU.

x86 CPUs with AVX2 and no VNNI multiply uint8 activations by int8 weights with VPMADDUBSW: the products of two
neighbours are added in 16 bits, and the sum saturates at 32,767. The neighbours are weights 2k and 2k + 1 of an output
channel, in the order in which the kernel reads them: (kernel height, kernel width, input channel). A pair saturates for
some input exactly if its positive weights, or its negative ones, sum to more than ``pair_limit``. No other pairing
matters, and a depthwise convolution is computed by another kernel, which does not saturate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

INT16_MAX = 2**15 - 1


@dataclass(frozen=True, slots=True)
class Saturating:
    """What can saturate in a weight: ``pairs`` in ``channels`` output channels; ``worst`` is the largest sum."""

    channels: int
    pairs: int
    worst: int


def pair_limit(highest_code: int) -> int:
    """The largest sum of two weights of one sign that no activation codes 0..``highest_code`` saturate: 128 for 255."""
    return INT16_MAX // max(highest_code, 1)


def is_depthwise(shape: tuple[int, ...], groups: int) -> bool:
    """Whether onnxruntime has its depthwise kernel for a convolution of weights [C_out, C_in/groups, *kernel]."""
    return len(shape) > 2 and shape[0] == groups and shape[1] == 1


def pair_indices(shape: tuple[int, ...]) -> NDArray[np.intp]:
    """The pairs that are added in 16 bits, [P, 2]: indices into one output channel's flattened weights.

    ``shape`` is that of the weight, [C_out, C_in/groups, *kernel] or [C_out, K]. A last one without a partner has the
    index K beside it.
    """
    size = math.prod(shape[1:])
    order = np.arange(size).reshape(shape[1:])
    if order.ndim > 1:
        order = np.moveaxis(order, 0, -1)
    return np.append(order.reshape(-1), [size] * (size % 2)).reshape(-1, 2).astype(np.intp)


def partners(shape: tuple[int, ...]) -> NDArray[np.intp]:
    """The other one of each weight's pair, [K]: an index as in ``pair_indices``, K for none."""
    pairs = pair_indices(shape)
    found = np.full(math.prod(shape[1:]) + 1, math.prod(shape[1:]), np.intp)
    found[pairs[:, 0]], found[pairs[:, 1]] = pairs[:, 1], pairs[:, 0]
    return found[:-1]


def pair_sums(weight: NDArray[Any]) -> NDArray[np.int16]:
    """For every pair of the codes [C_out, ...], the larger of its positive and its negative sum: [C_out, P]."""
    rows = np.zeros((len(weight), math.prod(weight.shape[1:]) + 1), np.int16)  # of two codes at most 256
    rows[:, :-1] = weight.reshape(len(weight), -1)
    pairs = rows[:, pair_indices(weight.shape)]
    sums = (np.maximum(signed, 0).sum(-1, dtype=np.int16) for signed in (pairs, -pairs))
    return np.asarray(np.maximum(*sums))


def saturating(weight: NDArray[Any], highest_code: int) -> Saturating | None:
    """Where products of the weight's codes [C_out, ...] can saturate; None proves that they cannot."""
    sums = pair_sums(weight)
    over = sums > pair_limit(highest_code)
    if not over.any():
        return None
    return Saturating(int(over.any(axis=1).sum()), int(over.sum()), int(sums.max()))
