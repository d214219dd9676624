"""The grid of biases in training: the int32 steps that a layer's bias is rounded to when it ships.

An integer kernel adds a bias to sums of products of codes, so it is a multiple of both scales. At 4 bits those steps
are coarse, and a model that is trained without them is not the one that ships.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qdeploy.quant.fake_quant._base import ActivationFakeQuant, WeightFakeQuant


@dataclass(frozen=True, slots=True, eq=False)
class BiasGrid:
    """The steps of one layer's bias: the scale of its input times that of each output channel's weights.

    ``reader`` is what quantizes the layer's output: where that subtracts the start of an interval (QIL), the bias takes
    it in before it is rounded. ``own`` is the bias that the layer stores, in front of a batch norm.
    """

    source: ActivationFakeQuant
    weight: WeightFakeQuant
    reader: ActivationFakeQuant | None = None
    own: Tensor | None = None

    @torch.no_grad()
    def residue(self, bias: Tensor, gain: Tensor | None = None) -> Tensor:
        """What rounding adds to ``bias`` [C_out], which is behind a ``gain`` [C_out]; 0 where a step is 0."""
        assert self.weight.last_scale is not None, "the weight is fake-quantized before the bias is added"
        step = self.source.dequantize_scale() * self.weight.last_scale
        if gain is not None:
            step = step * gain
        start = None if self.reader is None else self.reader.start()
        shifted = bias if start is None else bias - start
        # A step of nothing would divide by 0, and codes beyond int32 make finish() raise the scale instead.
        codes = shifted / step
        return torch.where(codes.abs() < 2**31, codes.round() * step - shifted, 0.0)


class RoundedBias(nn.Module):
    """A bias [C_out] on its grid, with the gradient of the bias."""

    def __init__(self, grid: BiasGrid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, bias: Tensor) -> Tensor:
        """The nearest multiples of the steps, float32 [C_out]."""
        return bias + self.grid.residue(bias)
