"""PACT: the clipping value of every activation is learned; weights are clipped at what their statistics say (SAWB).

Choi et al., "PACT: Parameterized Clipping Activation for Quantized Neural Networks", arXiv:1805.06085, 2018, and
"Bridging the Accuracy Gap for 2-bit Quantized Neural Networks (QNN)", arXiv:1807.06964, 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qdeploy.quant.fake_quant._base import (
    ActivationFakeQuant,
    WeightFakeQuant,
    mean_magnitude,
    rows_of,
    usable_scale,
)
from qdeploy.quant.fake_quant._functional import along_axis_0, fake_quantize, positive
from qdeploy.quant.fake_quant._sawb import coefficients


class SAWBWeight(WeightFakeQuant):
    """Weights clipped at c1 sqrt(E[w**2]) - c2 E[|w|] (arXiv:1807.06964, SAWB), from their current statistics.

    There are 2**b - 1 levels with 0 among them, as integer kernels have no level between two codes, where the paper
    has 2**b; with one bit there are the two levels -E[|w|] and E[|w|]. The clipping value is in proportion to the
    E[|w|] of each output channel, while sqrt(E[w**2]) / E[|w|], the shape of the distribution, is that of the whole
    layer: the few weights of a channel would not tell it. Nothing is learned beside the weights.
    """

    @torch.no_grad()
    def _scale(self, weight: Tensor) -> Tensor:
        rows = rows_of(weight)
        if not rows.numel():
            return weight.new_ones(len(rows))
        mean = mean_magnitude(weight)
        spread = (rows / usable_scale(mean, self.scheme)[:, None]).square().mean().sqrt()
        c1, c2 = coefficients(self.scheme.levels)
        # Of the six distributions the uniform one is the flattest: what it wants is the least that any does.
        least = 2 * (self.scheme.levels - 1) / self.scheme.levels
        clip = torch.minimum(mean * (c1 * spread - c2).clamp_min(least), rows.abs().amax(dim=1))
        return usable_scale(clip / self.scheme.qmax, self.scheme)

    def _steps(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        scale = self._scale(weight)
        return weight / along_axis_0(scale, weight), scale


class PACTActivation(ActivationFakeQuant):
    """Eq. 1-3 of arXiv:1805.06085: clip at the learned alpha, scale alpha / (2**b - 1).

    The gradient of alpha is 1 where x is clipped there and 0 elsewhere. The paper adds an L2 penalty on alpha to the
    loss, without which nothing draws it down to finer steps: that is ``decays``, weight decay for the optimizer to
    apply. A two-sided tensor is clipped at its lower end too, with the same step.
    """

    decays = True

    def __init__(self, bits: int, low: float, high: float, *, foldable: bool = False) -> None:
        super().__init__(bits, low, high, foldable=foldable)
        self.alpha = nn.Parameter(torch.tensor(self._initial_scale * self._reach()))

    def _scales(self, x: Tensor | None) -> tuple[Tensor, Tensor]:
        scale = positive(self.alpha / self._reach())
        return scale.detach(), scale

    def forward(self, x: Tensor) -> Tensor:
        """``x`` as the artifact sees it: quantized and dequantized, float32, the same shape."""
        return fake_quantize(x, *self._scales(x), *self._limits(), saturated_only=True)


class FakeQuant:
    """Learned clipping of activations, statistics-aware clipping of weights."""

    needs_activations = True  # without ranges to learn it is not this method

    Weight = SAWBWeight
    Activation = PACTActivation
