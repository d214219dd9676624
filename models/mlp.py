"""A multilayer perceptron for tables: what the recipes for csv files train in seconds."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU and dropout behind, a linear classifier. [N, features] -> logits [N, classes].

    ``hidden`` are the widths between. Layers of 64 or more are wide enough for int8 kernels to gain something.
    """

    def __init__(self, features: int, classes: int, hidden: Sequence[int] = (128, 128), dropout: float = 0.3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = features
        for outputs in hidden:
            layers += [nn.Linear(width, outputs), nn.ReLU(), nn.Dropout(dropout)]
            width = outputs
        self.hidden = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify rows [N, features]; returns logits [N, classes]."""
        return self.classifier(self.hidden(x))
