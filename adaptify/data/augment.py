"""Random shifts and flips of a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Random crop after padding by an eighth of the size (4 pixels at 32x32), then a random flip.

    How images may be changed without changing their class is a property of the data set, so the
    data set makes this, not the user.

    Attributes:
        flip: Whether a mirror image is still of its class (not so for digits or letters).
    """

    flip: bool

    def __call__(
        self, pixels: Tensor, generator: torch.Generator, own: slice = slice(None), among: int | None = None
    ) -> Tensor:
        """Return changed copies of `pixels`.

        Args:
            pixels: (B, C, H, W) uint8, on any device; the padding is black.
            generator: CPU generator that all draws come from, so that they do not depend on the device.
            own: Which images of a batch these are: it is drawn for all of it.
            among: How many images that batch has; None: these are all.

        Returns:
            (B, C, H, W) uint8.
        """
        batch, _, height, width = pixels.shape
        drawn = batch if among is None else among
        pad_y, pad_x = height // 8, width // 8
        top = torch.randint(2 * pad_y + 1, (drawn,), generator=generator)[own]
        left = torch.randint(2 * pad_x + 1, (drawn,), generator=generator)[own]
        padded = F.pad(pixels, (pad_x, pad_x, pad_y, pad_y))
        # A view of every crop there is, (B, C, 2 pad_y + 1, 2 pad_x + 1, H, W); only the chosen are copied.
        crops = padded.unfold(2, height, 1).unfold(3, width, 1)
        device = pixels.device
        changed = crops[torch.arange(batch, device=device), :, top.to(device), left.to(device)]
        if self.flip:
            mirrored = torch.rand(drawn, generator=generator)[own] < 0.5
            changed = torch.where(mirrored.to(device).view(-1, 1, 1, 1), changed.flip(3), changed)
        return changed
