"""Data sets in memory and networks of a few parameters, for tests of training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adaptify.data import Data, MemorySplit
from adaptify.data.augment import Augmentation
from adaptify.input_spec import InputSpec

INPUT = InputSpec(1, 4, 4, mean=(0.5,), std=(0.5,))


def split_of(pixels: Tensor, labels: Tensor) -> MemorySplit:
    return MemorySplit(
        lambda report: pixels, labels, torch.arange(len(labels)), INPUT, Augmentation(flip=False)
    )


def patterns(count: int, seed: int) -> MemorySplit:
    """Images (1, 4, 4) of four classes: one quarter is brighter than the others, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    pixels = torch.randint(0, 140, (count, 1, 2, 2, 2, 2), generator=generator)  # (.., row, y, column, x)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        image[0, label // 2, :, label % 2] += 100
    return split_of(pixels.reshape(count, 1, 4, 4).to(torch.uint8), labels)


def tiny_data(train: int = 256, holdout: int = 64) -> Data:
    parts = (patterns(train, 1), patterns(holdout, 2), patterns(32, 3))
    return Data("patterns", *parts, ("nw", "ne", "sw", "se"), INPUT)


def linear_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4))


def conv_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)
    )


def weights(model: nn.Module) -> Tensor:
    """All parameters in one row."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
