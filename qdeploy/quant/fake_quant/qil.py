"""Quantization interval learning: the interval that is quantized is learned; what lies below it is 0, above it clipped.

Jung et al., "Learning to Quantize Deep Networks by Optimizing Quantization Intervals with Task Loss", CVPR 2019.

The paper maps an interval to 0..1 and leaves the size of what a layer then computes to the batch norm behind it. Here
the result is multiplied by a gain, the width that the interval has at the start, so that a trained model computes at
the start what it did. The gain is a constant, so the two differ by a factor that the next layer absorbs.

The gradients of centre and distance are sums over N values, the weights of a channel or the features of a sample. They
are divided by sqrt(N), as Esser et al. 2020, section 2.2, divide that of a step, so that one learning rate suits both
weights and intervals.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from qdeploy.core.errors import NotRepresentableError
from qdeploy.core.scheme import QScheme
from qdeploy.quant.fake_quant._base import (
    ActivationFakeQuant,
    ActivationParameters,
    WeightFakeQuant,
    features,
    initial_scale,
)
from qdeploy.quant.fake_quant._functional import along_axis_0, positive, scale_gradient


class QILWeight(WeightFakeQuant):
    """The weights' transformer, eq. 3 with gamma = 1, rounded to -qmax..qmax, qmax = 2**(b - 1) - 1.

    ``center`` and ``distance`` [C_out] are learned, one pair for each output channel (a layer in the paper). They
    start as the interval from 0 to the clipping value of least squared error. The paper's learned gamma is left out:
    below 1 its gradient has no bound at the lower end of the interval.
    """

    gain: Tensor

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        width = initial_scale(weight, self.scheme) * self.scheme.qmax
        self.register_buffer("gain", width)
        self.center = nn.Parameter(width / 2)
        self.distance = nn.Parameter(width / 2)

    @classmethod
    def _scheme(cls, bits: int) -> QScheme:
        if bits == 1:
            raise NotRepresentableError(
                "QIL weights of 1 bit are not representable: the paper's 2**(bits - 1) - 1 leaves 0 levels beside 0.",
                "Use 2 to 8 bits, or ste or lsq for 1.",
            )
        return super()._scheme(bits)

    def transform(self, weight: Tensor) -> Tensor:
        """Eq. 3: 0 where |w| < center - distance, +-1 where |w| > center + distance, linear between."""
        factor = 1.0 / math.sqrt(features(weight))
        center, distance = scale_gradient(self.center, factor), scale_gradient(positive(self.distance), factor)
        start, width = along_axis_0(center - distance, weight), along_axis_0(2 * distance, weight)
        return weight.sign() * ((weight.abs() - start) / width).clamp(0, 1)

    def _window(self) -> tuple[float, float]:
        return -torch.inf, torch.inf  # the transformer has clipped

    def _steps(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform(weight) * self.scheme.qmax, self.gain / self.scheme.qmax


class QILActivation(ActivationFakeQuant):
    """The activations' transformer: 0 below center - distance, 1 above center + distance, rounded to 0..2**b - 1.

    An interval that starts at ``start`` = center - distance >= 0 needs (x - start) / scale, which QuantizeLinear
    cannot compute but the bias of the layer before can: ``foldable``. Elsewhere, and for a two-sided tensor, the
    interval starts at 0 and only ``distance`` is learned.
    """

    gain: Tensor

    def __init__(self, bits: int, low: float, high: float, *, foldable: bool = False) -> None:
        super().__init__(bits, low, high, foldable=foldable)
        self.register_buffer("gain", torch.tensor(self._initial_scale * self._reach()))
        self.distance = nn.Parameter(self.gain / 2)
        self.center = nn.Parameter(self.gain / 2) if foldable and low == 0 else None

    def _start(self, x: Tensor | None) -> Tensor | None:
        if self.center is None:
            return None
        return (self._learned(self.center, x) - self._learned(positive(self.distance), x)).clamp_min(0)

    def _scales(self, x: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._learned(positive(self.distance), x) * (2 / self._reach()), self.gain / self._reach()

    @staticmethod
    def _learned(parameter: Tensor, x: Tensor | None) -> Tensor:
        return parameter if x is None else scale_gradient(parameter, 1.0 / math.sqrt(features(x)))

    def start(self) -> Tensor | None:
        """The start of the interval, where a bias can take it in."""
        return self._start(None)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` as the artifact sees it, less the start of the interval, times gain over width."""
        start = self._start(x)
        return super().forward(x if start is None else x - start)

    @torch.no_grad()
    def qparams(self) -> ActivationParameters:
        """The artifact's parameters, with the start of the interval."""
        start = self._start(None)
        return super().qparams() if start is None else replace(super().qparams(), start=np.float32(start.item()))


class FakeQuant:
    """Quantization intervals learned from the task's loss."""

    Weight = QILWeight
    Activation = QILActivation
