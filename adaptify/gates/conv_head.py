"""The classifier of MSDNet (Huang et al., 2017), as an exit head for feature maps."""

from __future__ import annotations

from torch import Tensor, nn


class ConvHead(nn.Module):
    """Two 3x3 convolutions of stride 2 with BatchNorm and ReLU, the global average, one linear layer.

    It can make more of features of an early layer than a linear head on their average does.

    Args:
        channels: C, of the feature map.
        classes: M, the number of scores.
        width: Filters of each convolution.
    """

    def __init__(self, channels: int, classes: int, *, width: int = 128) -> None:
        super().__init__()
        self.features = nn.Sequential(_layer(channels, width), _layer(width, width))
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits: features (N, C, H, W) to (N, M)."""
        logits: Tensor = self.linear(self.features(x).mean((2, 3)))
        return logits


def _layer(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )
