"""ESPCN: super-resolution with convolutions on the small image and one shuffle of pixels (Shi et al. 2016)."""

from __future__ import annotations

from torch import Tensor, nn


class ESPCN(nn.Module):
    """5x5 and two 3x3 convolutions, then channels become pixels. [N, 1, H, W] -> [N, 1, factor H, factor W] in 0..1.

    ``activation`` "tanh" is the paper's; "relu" (its table 1 has both) runs in integers, which tanh does not.
    """

    def __init__(self, factor: int = 3, channels: int = 64, activation: str = "relu") -> None:
        super().__init__()
        if activation not in ("relu", "tanh"):
            raise ValueError(f"activation is {activation!r}, not relu or tanh")
        made = nn.ReLU if activation == "relu" else nn.Tanh
        self.conv1 = nn.Conv2d(1, channels, kernel_size=5, padding=2)
        self.activation1 = made()
        self.conv2 = nn.Conv2d(channels, channels // 2, kernel_size=3, padding=1)
        self.activation2 = made()
        self.conv3 = nn.Conv2d(channels // 2, factor * factor, kernel_size=3, padding=1)
        self.shuffle = nn.PixelShuffle(factor)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, nonlinearity=activation)
            nn.init.zeros_(conv.bias)
        nn.init.normal_(self.conv3.weight, std=1e-3)
        nn.init.constant_(self.conv3.bias, 0.5)  # medium grey, from which the first steps have not far to go

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge images [N, 1, H, W]; returns [N, 1, factor * H, factor * W]."""
        x = self.activation2(self.conv2(self.activation1(self.conv1(x))))
        return self.shuffle(self.conv3(x))
