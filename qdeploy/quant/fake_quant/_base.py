"""What every fake quantizer is: exactly the artifact's arithmetic forwards, with gradients that can train it.

A plugin defines ``FakeQuant`` with two class attributes, ``Weight`` and ``Activation``, subclasses of the two modules
here. Their learned parameters start from a trained float32 model: its weights, and its activations' calibrated range.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qdeploy.core import affine
from qdeploy.core import scheme as schemes
from qdeploy.core.errors import QDeployError
from qdeploy.core.qtensor import QTensor
from qdeploy.core.scheme import QScheme
from qdeploy.quant.fake_quant._functional import along_axis_0, fake_quantize, rounded, straight_through
from qdeploy.quant.finite import refusal
from qdeploy.quant.pairs import widening
from qdeploy.quant.weight_range import symmetric_scale

SETTLED_SHARE = 0.25  # the last part of training in which statistics stand still

# A weight of one bit is a sign, which the weights near 0 decide. The gradient passes up to this many scales from it,
# where Hubara et al. 2016 have |w| <= 1: nearly all of a bell of weights, and none that only grows.
BINARY_WINDOW = 3.0


@dataclass(frozen=True, slots=True)
class ActivationParameters:
    """What the artifact computes for an activation.

    codes = clip(round_half_even((x - start) / scale) + zero_point, 0, 2**bits - 1), float32 with a true division, and
    value = (codes - zero_point) * dequantize_scale. Only QIL has a ``start`` other than 0, which the layer before
    subtracts in its bias, and two scales that differ.
    """

    scale: np.float32
    zero_point: int
    dequantize_scale: np.float32
    start: np.float32


class FakeQuantModule(nn.Module):
    """What weights' and activations' fake quantizers share.

    ``decays``: whether weight decay is meant to reach the learned parameters, as the L2 regularisation that a paper
    calls for; otherwise an optimizer leaves it off them. ``scheme`` says which codes there are.
    """

    decays: ClassVar[bool] = False
    scheme: QScheme

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Training starts ``epoch`` of ``epochs``, both counted from 1."""


class WeightFakeQuant(FakeQuantModule):
    """Quantizes a layer's weight [C_out, ...], real = code * scale with a scale for each output channel.

    A subclass gives a ``scheme`` of signed codes and ``_steps``. NotRepresentableError: a width at which the method's
    levels are not int8 codes. QDeployError: a weight without an axis, NaN or infinite weights. ``limit``, where it is
    set, is what two neighbouring codes may sum to (quant/pairs.py).
    """

    limit: int | None = None
    last_scale: Tensor | None = None  # [C_out] of the codes that were made last

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        if weight.dim() == 0:
            raise QDeployError("A weight without an axis has no output channels.", "Leave a scalar in float32.")
        _refuse_non_finite(weight)
        self.scheme = self._scheme(bits)

    @classmethod
    def _scheme(cls, bits: int) -> QScheme:
        """The codes of ``bits`` bits: -qmax..qmax; one bit has the codes -1 and 1."""
        return schemes.weight(bits)

    @abstractmethod
    def _steps(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """What is rounded to codes, shaped like ``weight``, and the scale [C_out] of the codes; both differentiable."""

    def _window(self) -> tuple[float, float]:
        """The gradient of rounding passes strictly between these steps."""
        if self.scheme.bits == 1:
            return -BINARY_WINDOW, BINARY_WINDOW
        return self.scheme.qmin, self.scheme.qmax

    def forward(self, weight: Tensor) -> Tensor:
        """What the layer multiplies by: codes * scale, float32, shaped like ``weight``."""
        steps, scale = self._within_limit(weight)
        return straight_through(steps, self.scheme, *self._window(), self.limit) * along_axis_0(scale, weight)

    @torch.no_grad()
    def quantized(self, weight: Tensor) -> QTensor:
        """The codes that ship, along axis 0; their values are those of ``forward`` in eval mode, bit for bit.

        QDeployError: NaN or infinite weights.
        """
        _refuse_non_finite(weight)
        steps, scale = self._within_limit(weight)
        codes: NDArray[np.int8 | np.uint8]
        codes = rounded(steps, self.scheme, self.limit).cpu().numpy().astype(self.scheme.dtype)
        zero_point = np.zeros_like(codes, shape=len(codes))
        return QTensor(codes, scale.detach().cpu().numpy().copy(), zero_point, self.scheme, axis=0)

    def _within_limit(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """``_steps``, in channels whose pairs would break the limit with a scale as much larger as that takes."""
        steps, scale = self._steps(weight)
        if self.limit is not None:
            factor = widening(steps, self.scheme, self.limit)
            steps, scale = steps / along_axis_0(factor, steps), scale * factor
        self.last_scale = scale.detach()
        return steps, scale


class ActivationFakeQuant(FakeQuantModule):
    """Quantizes an activation tensor, with one scale and zero point.

    ``low`` <= 0 <= ``high``: the range seen in calibration. ``low`` = 0 is one-sided (behind a ReLU): zero point 0,
    codes 0..2**bits - 1. Otherwise the zero point divides the codes as 0 divides the range; a symmetric range gives
    2**(bits - 1). ``foldable``: whether the layer before can subtract a constant in its bias; QIL makes use of that.

    A subclass gives ``_scales`` and starts what it learns from ``_initial_scale``. QDeployError: a range without 0,
    NaN, infinity.
    """

    zero_point: Tensor

    def __init__(self, bits: int, low: float, high: float, *, foldable: bool = False) -> None:
        super().__init__()
        if not low <= 0.0 <= high:
            raise QDeployError(f"A range from {low} to {high} does not hold 0.", "Calibrate before fake quantizing.")
        self.scheme = schemes.activation(bits)
        scale, zero_point = affine.qparams(low, high, self.scheme)
        self._initial_scale = float(scale)
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.uint8))

    @abstractmethod
    def _scales(self, x: Tensor | None) -> tuple[Tensor, Tensor]:
        """The scales that quantize (a scalar) and dequantize ``x``; ``x`` is None where there is none at hand."""

    def dequantize_scale(self) -> Tensor:
        """The scale of the codes as they are read, a scalar."""
        return self._scales(None)[1]

    def start(self) -> Tensor | None:
        """What is subtracted before codes are made, a scalar; None where that is nothing."""
        return None

    def _limits(self) -> tuple[int, int]:
        """The lowest and the highest code, less the zero point."""
        zero_point = int(self.zero_point)
        return self.scheme.qmin - zero_point, self.scheme.qmax - zero_point

    def _reach(self) -> int:
        """How many steps there are between 0 and the upper end of the range; without an upper end, the lower."""
        low, high = self._limits()
        return high or -low

    def forward(self, x: Tensor) -> Tensor:
        """``x`` as the artifact sees it: quantized and dequantized, float32, the same shape."""
        return fake_quantize(x, *self._scales(x), *self._limits())

    @torch.no_grad()
    def qparams(self) -> ActivationParameters:
        """The artifact's parameters: with them its values are those of ``forward`` in eval mode, bit for bit."""
        scale, dequantize_scale = self._scales(None)
        return ActivationParameters(
            np.float32(scale.item()), int(self.zero_point), np.float32(dequantize_scale.item()), np.float32(0)
        )


def settled(epoch: int, epochs: int) -> bool:
    """Whether ``epoch`` of ``epochs`` (from 1) lies in the last part of training, in which statistics stand still.

    At least the last epoch does, unless it is the only one.
    """
    return epochs > 1 and epoch > epochs - max(1, int(epochs * SETTLED_SHARE))


def initial_scale(weight: Tensor, scheme: QScheme) -> Tensor:
    """The scale [C_out] of each output channel with the least squared rounding error, on the device of ``weight``."""
    scale = symmetric_scale(weight.detach().cpu().numpy(), scheme, observer="mse")
    return torch.from_numpy(scale).to(weight.device)


def features(x: Tensor) -> int:
    """How many values share an index of axis 0, at least 1: the features of a sample, the weights of a channel."""
    return max(math.prod(x.shape[1:]), 1)


def rows_of(weight: Tensor) -> Tensor:
    """[C_out, ...] as [C_out, K], also where K or C_out is 0."""
    return weight.reshape(len(weight), math.prod(weight.shape[1:]))


def mean_magnitude(weight: Tensor) -> Tensor:
    """The mean of |w| over each output channel, [C_out]; 0 where a channel has no weights."""
    rows = rows_of(weight)
    return rows.abs().sum(dim=1) / max(rows.shape[1], 1)


def usable_scale(scale: Tensor, scheme: QScheme) -> Tensor:
    """``scale`` [C_out] computed from weights, where a channel of zeros gets one that its bias can be quantized with.

    As in ``quant.weight_range``: the largest scale of the tensor (1 if all are zero); where 0 is not a code, a
    millionth of it.
    """
    largest = scale.max().detach() if len(scale) else scale.new_ones(())
    instead = torch.where(largest > 0, largest, 1.0)
    if scheme.codebook is not None and 0 not in scheme.codebook:
        instead = instead * 1e-6
    return torch.where(scale > 0, scale, instead).clamp_min(affine.SMALLEST_SCALE)


def _refuse_non_finite(weight: Tensor) -> None:
    if not torch.isfinite(weight).all():
        nan, infinite = int(weight.isnan().sum()), int(weight.isinf().sum())
        raise refusal(nan, infinite, f"among the {weight.numel():,} of the weight")
