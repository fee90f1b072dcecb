"""SGNet: a small classifier whose confidence says how hard an image is (SGAD, section 3.2, Fig. 2c)."""

from __future__ import annotations

from torch import Tensor, nn


class GuideNet(nn.Module):
    """Convolutions on the images, an average, a linear layer. Needed in training only.

    It should be clearly weaker than the network that it guides: an image that it is sure of is an easy one.

    Args:
        in_channels: Channels of the images.
        classes: M.
        width: Channels of the first convolution; the two after it have twice as many each, and halve the map.
    """

    def __init__(self, in_channels: int, classes: int, *, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels
        for depth in range(3):
            after = width << depth
            layers += [
                nn.Conv2d(before, after, 3, stride=1 if depth == 0 else 2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
            before = after
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(before, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, M) for images (N, C, H, W)."""
        logits: Tensor = self.linear(self.features(images).mean((2, 3)))
        return logits
