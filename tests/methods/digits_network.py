"""A small network that has learned the digits for a moment, for the tests of methods."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from gated_nets import DIGITS
from torch import nn

from adaptify.data import Data


def learned_digits(data: Data, epochs: int) -> nn.Module:
    """Train a fresh network on `data.train`, with the same seed every time."""
    torch.manual_seed(0)
    model = DIGITS.build().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(epochs):
        for images, labels in data.train.batches(64, shuffle=True, seed=epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval()
