"""Small networks with exits on several scales, and images for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adaptify.models.msdnet import MSDNet, MSDNetConfig
from adaptify.models.ranet import RANet, RANetConfig


def small_msdnet(**changes: Any) -> MSDNet:
    """Four exits, and all kinds of rows."""
    shape = {"blocks": 4, "channels": 4, "growth": 2, "head_channels": 8, "num_classes": 5}
    torch.manual_seed(0)
    return MSDNet(MSDNetConfig(**{**shape, **changes}))


def small_ranet(**changes: Any) -> RANet:
    """Eight exits."""
    shape = {"channels": 4, "growth": 4, "step": 2, "head_channels": 8, "num_classes": 5}
    torch.manual_seed(0)
    return RANet(RANetConfig(**{**shape, **changes}))


def images(count: int = 2, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """Seeded random images."""
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(1))
