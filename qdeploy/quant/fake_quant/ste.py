"""Straight-through estimation: ranges follow the statistics of weights and activations, and only weights learn.

Bengio, Leonard and Courville, arXiv:1308.3432, 2013; Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", CVPR 2018; for one-bit weights Rastegari, Ordonez, Redmon and Farhadi,
"XNOR-Net", ECCV 2016.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qdeploy.core import affine
from qdeploy.quant.fake_quant._base import (
    ActivationFakeQuant,
    WeightFakeQuant,
    initial_scale,
    mean_magnitude,
    settled,
    usable_scale,
)
from qdeploy.quant.fake_quant._functional import along_axis_0

MOMENTUM = 0.99  # of the moving average of an activation's range; Jacob et al., section 3.1: "close to 1"


class STEWeight(WeightFakeQuant):
    """Codes -qmax..qmax, at a scale for each output channel with the least squared error on the current weights.

    That scale is searched again in the first forward pass of every epoch, until the last quarter of training, in
    which it stays. The gradient passes for every weight that is not clipped. One bit is XNOR-Net's scaled sign: the
    scale is the mean |w| of a channel (eq. 6) in every forward pass, and gradients flow through it too.
    """

    scale: Tensor
    frozen: Tensor

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        self.register_buffer("scale", None if bits == 1 else initial_scale(weight, self.scheme))
        self.register_buffer("frozen", torch.tensor(False))
        self._due = False

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Search the scales again, but not in the last part of training."""
        self.frozen.fill_(settled(epoch, epochs))
        self._due = self.scheme.bits > 1 and not self.frozen

    def forward(self, weight: Tensor) -> Tensor:
        """What the layer multiplies by: codes * scale, float32, shaped like ``weight``."""
        if self._due and self.training:
            self.scale.copy_(initial_scale(weight, self.scheme))
            self._due = False
        return super().forward(weight)

    def _window(self) -> tuple[float, float]:
        low, high = super()._window()
        return (low, high) if self.scheme.bits == 1 else (low - 0.5, high + 0.5)

    def _steps(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        if self.scheme.bits == 1:
            scale = usable_scale(mean_magnitude(weight), self.scheme)
            return weight / along_axis_0(scale.detach(), weight), scale
        return weight / along_axis_0(self.scale, weight), self.scale


class STEActivation(ActivationFakeQuant):
    """A range that follows the activations: the moving average of each batch's smallest and largest value.

    Times the share of those that calibration kept, which the first batch shows: a few bits want a range that clips.
    The range stands still in the last quarter of training.
    """

    scale: Tensor
    range: Tensor
    share: Tensor
    frozen: Tensor

    def __init__(self, bits: int, low: float, high: float, *, foldable: bool = False) -> None:
        super().__init__(bits, low, high, foldable=foldable)
        self.register_buffer("scale", torch.tensor(self._initial_scale))
        self.register_buffer("range", torch.tensor([low, high]))
        self.register_buffer("share", torch.zeros(2))  # 0 until a batch was seen
        self.register_buffer("frozen", torch.tensor(False))

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Let the range follow, but not in the last part of training."""
        self.frozen.fill_(settled(epoch, epochs))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` as the artifact sees it: quantized and dequantized, float32, the same shape."""
        if self.training and x.numel() and not self.frozen:
            self._follow(x.detach())
        return super().forward(x)

    def _scales(self, x: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.scale, self.scale

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        seen = torch.stack(torch.aminmax(x)).float()
        if not self.share.any():
            share = self.range / seen
            self.share.copy_(torch.where(share.isfinite() & (share > 0), share, 1.0))
        self.range.lerp_(self.share * seen, 1 - MOMENTUM)
        low, high = self.range.tolist()
        scale, zero_point = affine.qparams(low, high, self.scheme)
        self.scale.fill_(float(scale))
        self.zero_point.fill_(zero_point)


class FakeQuant:
    """Ranges from statistics; nothing is learned beside the weights."""

    Weight = STEWeight
    Activation = STEActivation
