"""Learned step size quantization: the steps of weights and activations are trained like the weights.

Esser, McKinstry, Bablani, Appuswamy and Modha, "Learned Step Size Quantization", ICLR 2020.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qdeploy.core.scheme import QScheme
from qdeploy.quant.fake_quant._base import ActivationFakeQuant, WeightFakeQuant, features, initial_scale
from qdeploy.quant.fake_quant._functional import along_axis_0, positive, scale_gradient


class LSQWeight(WeightFakeQuant):
    """Eq. 1-3 with a step for each output channel: codes -2**(b-1)..2**(b-1) - 1; one bit has the codes -1 and 1.

    The paper has a step for each layer; onnxruntime's kernels have one for each channel at no cost. So N, the number
    of weights in the gradient scale 1 / sqrt(N * Qp) of section 2.2, is that of a channel. A step starts as the one
    with the least squared error on the trained weights, nearer to them than the paper's 2 <|w|> / sqrt(Qp).
    """

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        self.step = nn.Parameter(initial_scale(weight, self.scheme))

    @classmethod
    def _scheme(cls, bits: int) -> QScheme:
        return super()._scheme(bits) if bits == 1 else QScheme(bits=bits, signed=True)

    def _steps(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        scale = scale_gradient(positive(self.step), 1.0 / math.sqrt(features(weight) * self.scheme.qmax))
        # The sign of a weight does not change with its step: with one bit the step's gradient is that of the value.
        divisor = scale.detach() if self.scheme.bits == 1 else scale
        return weight / along_axis_0(divisor, weight), scale


class LSQActivation(ActivationFakeQuant):
    """Eq. 1-3 with one step; in the gradient scale 1 / sqrt(N * Qp), N is the number of features of one sample."""

    def __init__(self, bits: int, low: float, high: float, *, foldable: bool = False) -> None:
        super().__init__(bits, low, high, foldable=foldable)
        self.step = nn.Parameter(torch.tensor(self._initial_scale))

    def _scales(self, x: Tensor | None) -> tuple[Tensor, Tensor]:
        scale = positive(self.step)
        if x is not None:
            scale = scale_gradient(scale, 1.0 / math.sqrt(features(x) * self._reach()))
        return scale, scale


class FakeQuant:
    """Steps of weights and activations learned by gradient descent."""

    Weight = LSQWeight
    Activation = LSQActivation
