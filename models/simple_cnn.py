"""A small residual CNN for small images: what the recipes for digits and Fashion-MNIST train in seconds to minutes."""

from __future__ import annotations

from torch import Tensor, nn


def conv_bn_relu(inputs: int, outputs: int) -> nn.Sequential:
    """A 3x3 convolution that keeps height and width, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm; the input is added before the last ReLU. [N, C, H, W] -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_bn_relu(channels, channels)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(second(first(x)) + x)."""
        return self.relu(self.second(self.first(x)) + x)


class SimpleCNN(nn.Module):
    """Five 3x3 convolutions, one residual add, a linear classifier. Any height and width of 2 or more.

    ``channels`` is the width of the first half, the second is twice as wide; 32 is wide enough that int8 kernels
    beat float32 ones even on 8x8 images. [N, in_channels, H, W] -> logits [N, classes].
    """

    def __init__(self, channels: int = 32, in_channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn_relu(in_channels, channels), conv_bn_relu(channels, channels))
        self.pool = nn.MaxPool2d(kernel_size=2)
        self.widen = conv_bn_relu(channels, 2 * channels)
        self.block = ResidualBlock(2 * channels)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(2 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images [N, in_channels, H, W]; returns logits [N, classes]."""
        features = self.block(self.widen(self.pool(self.stem(x))))
        return self.classifier(self.flatten(self.average(features)))
