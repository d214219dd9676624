"""Additive powers-of-two: weight levels that are sums of powers of two, dense around zero as weights are.

Li, Dong and Wang, "Additive Powers-of-Two Quantization: An Efficient Non-uniform Discretization for Neural Networks",
ICLR 2020.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from qdeploy.core.errors import NotRepresentableError
from qdeploy.core.scheme import QScheme
from qdeploy.quant.fake_quant._base import ActivationFakeQuant, WeightFakeQuant, initial_scale
from qdeploy.quant.fake_quant._functional import along_axis_0, positive

INT8 = np.iinfo(np.int8)


def magnitudes(bits: int) -> tuple[int, ...]:
    """The 2**bits levels of section 2.2 with k = 2, sorted, as multiples of the smallest power among their terms.

    Two bits choose one term: of n = bits // 2 terms, the i-th is 0, 2**-i, 2**-(i+n) or 2**-(i+2n). An odd bit adds a
    term of two values, 0 or 2**-2n, and the last power of the others moves down by one to make room for it.
    """
    n, odd = divmod(bits, 2)
    exponents = [(i, i + n, i + 2 * n + odd) for i in range(n)] + [(2 * n,)] * odd
    lowest = max(max(term) for term in exponents)
    terms = [(0, *(2 ** (lowest - exponent) for exponent in term)) for term in exponents]
    return tuple(sorted({sum(chosen) for chosen in product(*terms)}))


class APoTWeight(WeightFakeQuant):
    """Levels with a sign and b - 1 bits of magnitude, of weights clipped at alpha standard deviations of the layer.

    ``alpha`` is learned, one for each output channel (a layer in the paper), with the gradient of the paper's
    reparameterized clipping function: the sign of a weight that is clipped, else its level less w / alpha. The
    integer levels at 4 bits are 0, 1, 2, 3, 4, 6, 8 and 10 with a sign; at 5 bits they reach 48, at 6 bits 100, beyond
    that they leave int8.

    Of the paper's weight normalisation, (w - mean) / deviation without a gradient, the deviation is put back into the
    scale, where the paper leaves its effect to batch norm, and the mean is not subtracted: weights have no zero point
    that could put it back, and without it a trained model computes something else until it has been trained again.
    """

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        scale = initial_scale(weight / self._deviation(weight), self.scheme)
        self.alpha = nn.Parameter(scale * self.scheme.qmax)

    @classmethod
    def _scheme(cls, bits: int) -> QScheme:
        plain = super()._scheme(bits)  # refuses a width that no scheme has
        if bits == 1:
            raise NotRepresentableError(
                "APoT weights of 1 bit are not representable: beside the sign there is no bit for a level.",
                "Use 2 to 6 bits, or ste or lsq for 1.",
            )
        levels = magnitudes(bits - 1)
        if levels[-1] > INT8.max:
            raise NotRepresentableError(
                f"APoT weights of {bits} bits are not representable: their levels are multiples of the smallest power "
                f"of two up to {levels[-1]}, beyond int8's {INT8.max}.",
                "Use 2 to 6 bits, or another fake quantizer for this width.",
            )
        return QScheme(bits=plain.bits, signed=True, codebook=(*(-level for level in levels[:0:-1]), *levels))

    @staticmethod
    def _deviation(weight: Tensor) -> Tensor:
        """The standard deviation of a layer's weights, a scalar; 1 where they have no spread."""
        values = weight.detach()
        deviation = values.std(correction=0) if values.numel() else values.new_zeros(())
        return torch.where(deviation > 0, deviation, 1.0)

    def _steps(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        scale = positive(self.alpha * (self._deviation(weight) / self.scheme.qmax))
        return weight / along_axis_0(scale, weight), scale


class APoTActivation(ActivationFakeQuant):
    """Uniform levels with a learned clipping value and the gradient of the reparameterized clipping function.

    Not the paper's levels for activations: QuantizeLinear rounds to evenly spaced ones and to no others.
    """

    def __init__(self, bits: int, low: float, high: float, *, foldable: bool = False) -> None:
        super().__init__(bits, low, high, foldable=foldable)
        self.alpha = nn.Parameter(torch.tensor(self._initial_scale * self._reach()))

    def _scales(self, x: Tensor | None) -> tuple[Tensor, Tensor]:
        scale = positive(self.alpha / self._reach())
        return scale, scale


class FakeQuant:
    """Weights in sums of powers of two, uniform activations, both with learned clipping."""

    Weight = APoTWeight
    Activation = APoTActivation
