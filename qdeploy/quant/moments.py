"""First and second moments of what a layer's weights meet, in the float32 graph and in the quantized one.

A convolution meets the patches of its padded input, a linear layer its rows, an LSTM its input of every step and the
hidden states of the step before: the columns. Everything that rounding,
its target and a corrected bias need of the calibration data is in their moments, so no activations are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx

from qdeploy.core.errors import QDeployError
from qdeploy.graph.operators import argument, is_operator, shape_of
from qdeploy.graph.recurrent import LSTM
from qdeploy.quant.finite import refusal

Float64 = NDArray[np.float64]

# Columns of a layer that are looked at. Neighbouring patches share most of their pixels: more of them change the
# moments of a few hundred inputs by less than a percent.
COLUMNS = 1 << 16

_ROWS = ("aten.linear", LSTM)  # layers whose columns are the rows of what they read


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of a layer's columns, x in the float32 graph and x_hat in the quantized one, float64.

    ``second`` is E[x_hat x_hat^T] and ``cross`` E[x x_hat^T], [groups, K, K]; ``mean`` is E[x] and ``mean_hat``
    E[x_hat], [groups, K]. K is the number of weights of one output channel.
    """

    second: Float64
    cross: Float64
    mean: Float64
    mean_hat: Float64

    def centred(self) -> Moments:
        """The covariances: what is left to minimise when the bias makes up for the means."""
        return Moments(
            self.second - self.mean_hat[:, :, None] * self.mean_hat[:, None, :],
            self.cross - self.mean[:, :, None] * self.mean_hat[:, None, :],
            np.zeros_like(self.mean),
            np.zeros_like(self.mean_hat),
        )

    def target(self, weight: NDArray[Any], damping: float) -> NDArray[np.float32]:
        """The real weights that, on quantized inputs, come closest to what ``weight`` does on the float32 ones.

        argmin over V of E|W x - V x_hat|^2 + d |W - V|^2 is W (cross + d I) (second + d I)^-1, with d = ``damping``
        times the mean diagonal of ``second``: earlier layers' errors are made up for as far as the data determine how.
        ``weight`` [C_out, ...]; the result has its shape.
        """
        groups, size = self.mean.shape
        rows = np.asarray(weight, np.float64).reshape(groups, -1, size)
        added = damping * np.trace(self.second, axis1=1, axis2=2) / max(size, 1)
        added = np.where(added > 0, added, 1.0)[:, None, None] * np.eye(size)
        found = np.linalg.solve(self.second + added, (rows @ (self.cross + added)).transpose(0, 2, 1))
        return found.transpose(0, 2, 1).reshape(weight.shape).astype(np.float32)


class MomentSums:
    """Takes in a layer's float32 and quantized inputs, batch by batch: sums in float64 of products in float32."""

    def __init__(self, node: fx.Node, *, seed: int = 0, most: int = COLUMNS) -> None:
        self.node = node
        self.most = most
        self.count = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._sums: list[Float64] = []

    def update(self, x: Tensor, x_hat: Tensor, *, share: float = 1.0) -> None:
        """The same batch in both graphs; ``share`` is the part of all samples that it holds.

        Of ``most`` columns for all samples, each batch has its share, drawn evenly at random: the same in both graphs.
        QDeployError: NaN or infinite values.
        """
        limit = max(1, round(self.most * share))
        picks: Tensor | None = None
        total = count_columns(self.node, x)
        if total > limit:
            picks = torch.randperm(total, generator=self._generator)[:limit]
        a, b = (columns(self.node, value, picks) for value in (x, x_hat))
        a_t, b_t = a.permute(1, 2, 0), b.permute(1, 0, 2)  # [groups, K, S] and [groups, S, K]
        found = (b.permute(1, 2, 0) @ b_t, a_t @ b_t, a.sum(0), b.sum(0))
        sums = [value.double().cpu().numpy() for value in found]
        if not all(np.isfinite(value).all() for value in sums):
            raise _refusal(a, b)
        self._sums = [old + new for old, new in zip(self._sums, sums, strict=True)] if self._sums else sums
        self.count += len(a)

    def result(self) -> Moments:
        """The moments of all that was seen. QDeployError if that is nothing."""
        if self.count == 0:
            raise QDeployError(
                "Rounding by layers' outputs has seen no calibration samples.", "Calibrate with at least one sample."
            )
        return Moments(*(value / self.count for value in self._sums))


def columns(node: fx.Node, x: Tensor, picks: Tensor | None = None) -> Tensor:
    """What each output of a layer multiplies with its weights: [S, groups, K].

    ``x`` is the layer's input, or all hidden states [T, D, N, H] of an LSTM, whose directions are groups; ``picks`` [S]
    are the numbers of the columns to take, all of them if None. K is in the order of the weights: channels of the
    group, then the kernel's axes.
    """
    if is_operator(node, *_ROWS):
        rows = _previous(x).flatten(0, 1) if x.dim() == 4 else x.reshape(-1, 1, x.shape[-1])
        return rows if picks is None else rows[picks]
    picks = torch.arange(count_columns(node, x)) if picks is None else picks
    window = _Window.of(node)
    pixels = F.pad(x, window.padding).movedim(1, -1)  # [N, *padded, C]: a tap is a row of its own
    sample, *position = torch.unravel_index(picks.to(x.device), (len(x), *window.outputs(x)))
    corner = [at * step for at, step in zip(position, window.stride, strict=True)]
    taps = torch.cartesian_prod(*(torch.arange(k, device=x.device) for k in window.kernel)).reshape(-1, len(corner))
    index = sample[:, None]
    for axis, size in enumerate(pixels.shape[1:-1]):
        index = index * size + corner[axis][:, None] + taps[:, axis] * window.dilation[axis]
    taken = pixels.reshape(-1, x.shape[1])[index]  # [S, taps, C]
    return taken.reshape(len(picks), len(taps), window.groups, -1).permute(0, 2, 3, 1).flatten(2)


def _previous(states: Tensor) -> Tensor:
    """The hidden states [T, D, N, H] that each step of an LSTM starts from, [T, N, D, H]: zeros, then those before."""
    nothing = torch.zeros_like(states[:1, 0])
    before = [torch.cat([nothing, states[:-1, 0]])]
    if states.shape[1] > 1:  # the second direction comes from the end
        before.append(torch.cat([states[1:, 1], nothing]))
    return torch.stack(before, dim=2)


def count_columns(node: fx.Node, x: Tensor) -> int:
    """How many columns an input ``x`` of a layer has: outputs of one channel, over all samples."""
    if is_operator(node, *_ROWS):
        return x.numel() // max(x.shape[-1] * (x.shape[1] if x.dim() == 4 else 1), 1)
    return len(x) * math.prod(_Window.of(node).outputs(x))


@dataclass(frozen=True, slots=True)
class _Window:
    """How a convolution moves over its input; one number for each spatial axis, ``padding`` as F.pad wants it."""

    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    padding: list[int]
    groups: int

    @classmethod
    def of(cls, node: fx.Node) -> _Window:
        kernel = list(shape_of(argument(node, 1, "weight"))[2:])
        stride, dilation = (_each(argument(node, i, n, 1), len(kernel)) for i, n in ((3, "stride"), (5, "dilation")))
        padding = _padding(argument(node, 4, "padding", 0), kernel, dilation)
        return cls(kernel, stride, dilation, padding, int(argument(node, 6, "groups", 1)))

    def outputs(self, x: Tensor) -> list[int]:
        """The convolution's output size along each spatial axis."""
        ends = [sum(pair) for pair in zip(self.padding[::2], self.padding[1::2], strict=True)][::-1]
        sizes = zip(x.shape[2:], ends, self.kernel, self.dilation, self.stride, strict=True)
        return [(size + end - dilation * (k - 1) - 1) // stride + 1 for size, end, k, dilation, stride in sizes]


def _padding(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Begin and end of each axis, the last axis first, as F.pad wants them."""
    if padding == "same":
        widths = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pairs = [(width // 2, width - width // 2) for width in widths]
    else:
        pairs = [(width, width) for width in _each(0 if padding == "valid" else padding, len(kernel))]
    return [width for pair in reversed(pairs) for width in pair]


def _each(value: Any, axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values


def _refusal(a: Tensor, b: Tensor) -> QDeployError:
    both = torch.stack((a, b))
    nan, infinite = int(torch.isnan(both).sum()), int(torch.isinf(both).sum())
    if nan or infinite:
        return refusal(nan, infinite, "in the inputs of the layer")
    return QDeployError(
        "The second moment of the layer's inputs leaves float32.",
        "Scale the model's activations, or use nearest rounding.",
    )
