"""A network and images as a user has them: no name, no folder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adaptify.data import open_data
from adaptify.models.registry import resolve

SHAPE = (1, 8, 8)


class PlainNet(nn.Module):
    """Three stages of convolutions for the embedded digits."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = _stage(1, width, 1)
        self.second = _stage(width, 2 * width, 2)
        self.third = _stage(2 * width, 2 * width, 1)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.third(self.second(self.first(images)))
        return self.head(maps.mean((2, 3)))  # type: ignore[no-any-return]


def _stage(inputs: int, outputs: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def digits() -> tuple[TensorDataset, TensorDataset]:
    """The embedded digits to train and to test on, as tensors."""
    data = open_data("digits", input=resolve("adaptify:digits_resnet").input)
    images, labels = zip(*(next(split.batches(len(split))) for split in (data.train, data.test)), strict=True)
    return TensorDataset(images[0], labels[0]), TensorDataset(images[1], labels[1])


def trained(loader: DataLoader[tuple[Tensor, ...]], epochs: int = 4) -> PlainNet:
    """A network after a loop as users write it."""
    torch.manual_seed(0)
    model = PlainNet().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval()
