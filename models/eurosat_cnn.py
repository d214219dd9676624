"""A small CNN for 64x64 satellite images: 3x3 convolutions with batch norm, residual blocks, max pooling."""

from __future__ import annotations

from torch import Tensor, nn


def conv_bn_relu(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution, batch norm, ReLU; ``stride`` 2 halves height and width."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
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


class EuroSatCNN(nn.Module):
    """Four stages of halved size, each but the first with a residual block. [N, 3, H, W] -> logits [N, classes].

    ``channels`` is the width of the first stage; the others have two, four and four times as many.
    """

    def __init__(self, channels: int = 32, in_channels: int = 3, classes: int = 10, dropout: float = 0.2) -> None:
        super().__init__()
        c = channels
        self.features = nn.Sequential(
            conv_bn_relu(in_channels, c, stride=2),
            *(conv_bn_relu(c, 2 * c), nn.MaxPool2d(kernel_size=2), ResidualBlock(2 * c)),
            *(conv_bn_relu(2 * c, 4 * c), nn.MaxPool2d(kernel_size=2), ResidualBlock(4 * c)),
            *(conv_bn_relu(4 * c, 4 * c), nn.MaxPool2d(kernel_size=2)),
        )
        self.average = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(4 * c, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images [N, in_channels, H, W], 16x16 or larger; returns logits [N, classes]."""
        return self.classifier(self.dropout(self.flatten(self.average(self.features(x)))))
