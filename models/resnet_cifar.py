"""ResNet-20, -32, -44, -56 and -110 for 32x32 images (He et al. 2016, section 4.2), with shortcuts of option A.

Names of the parameters are those of akamaster/pytorch_resnet_cifar10, so its published checkpoints load as they are.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ShortcutA(nn.Module):
    """Option A, free of parameters: every second pixel, and zeros for the channels that are new.

    Slicing and padding move values and compute none, so a quantized graph passes codes through unchanged.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, ceil(H/2), ceil(W/2)]."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut; ``stride`` 2 halves height and width."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else ShortcutA(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H/stride, W/stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNetCIFAR(nn.Module):
    """Three stages of ``blocks`` basic blocks each, 16, 32 and 64 channels wide: 6 * blocks + 2 layers.

    [N, in_channels, H, W], 32x32 in the paper -> logits [N, classes].
    """

    def __init__(self, blocks: int, classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images [N, in_channels, H, W]; returns logits [N, classes]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(self.average(out).flatten(1))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, stride=1) for _ in range(blocks - 1)))


def resnet20(classes: int = 10, in_channels: int = 3) -> ResNetCIFAR:
    """20 layers, 0.27 M parameters."""
    return ResNetCIFAR(3, classes, in_channels)


def resnet32(classes: int = 10, in_channels: int = 3) -> ResNetCIFAR:
    """32 layers, 0.46 M parameters."""
    return ResNetCIFAR(5, classes, in_channels)


def resnet44(classes: int = 10, in_channels: int = 3) -> ResNetCIFAR:
    """44 layers, 0.66 M parameters."""
    return ResNetCIFAR(7, classes, in_channels)


def resnet56(classes: int = 10, in_channels: int = 3) -> ResNetCIFAR:
    """56 layers, 0.85 M parameters."""
    return ResNetCIFAR(9, classes, in_channels)


def resnet110(classes: int = 10, in_channels: int = 3) -> ResNetCIFAR:
    """110 layers, 1.7 M parameters."""
    return ResNetCIFAR(18, classes, in_channels)
