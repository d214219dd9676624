"""VGG for 32x32 images (Simonyan and Zisserman, arXiv:1409.1556), with batch norm and one linear layer."""

from __future__ import annotations

from torch import Tensor, nn

# Widths of the 3x3 convolutions; "M" halves height and width. Column A of the paper's table 1.
VGG11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")


class VGG(nn.Module):
    """Convolutions with batch norm and ReLU, max pooling, a linear classifier. [N, 3, 32, 32] -> logits [N, classes].

    ``width`` multiplies the number of channels of every layer.
    """

    def __init__(self, classes: int = 10, width: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for entry in VGG11:
            if isinstance(entry, str):
                layers.append(nn.MaxPool2d(kernel_size=2))
                continue
            outputs = round(entry * width)
            layers += [
                nn.Conv2d(channels, outputs, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            ]  # fmt: skip
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Classify images [N, 3, 32, 32]; returns logits [N, classes]."""
        return self.classifier(self.dropout(self.flatten(self.features(x))))


def vgg11(classes: int = 10, width: float = 1.0, dropout: float = 0.0) -> VGG:
    """VGG-11 with batch norm: eight convolutions, ``width`` times as wide as the paper's."""
    return VGG(classes, width, dropout)
