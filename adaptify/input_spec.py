"""What one input image of a network looks like."""

from __future__ import annotations

from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InputSpec:
    """Shape and normalisation of an input image.

    Attributes:
        channels: Number of image channels (3 for RGB, 1 for grey).
        height: Height in pixels.
        width: Width in pixels.
        mean: Per-channel mean that is subtracted, for pixel values in [0, 1].
        std: Per-channel standard deviation that is divided by.
        resize: Length in pixels to which the shorter side is scaled before the centre crop;
            `None` scales straight to (height, width).
    """

    channels: int = 3
    height: int = 224
    width: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resize: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (self.channels, self.height, self.width)
