"""Exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Keeps average <- decay * average + (1 - decay) * weights, starting from the weights as they are.

    Parameters are averaged. Buffers (the statistics of BatchNorm) are averages already: they are the
    network's own wherever the average is used.

    Args:
        model: The network; its parameters stay the same objects.
        decay: In (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        # Frozen parameters stay what they are; there is nothing to average.
        self._weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._average = [weight.detach().clone() for weight in self._weights]
        self._step = get_ema_multi_avg_fn(decay)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The average, as the tensors that keep it."""
        return tuple(self._average)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an optimizer step."""
        self._step(self._average, self._weights, 0)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the network have the average while the block lasts."""
        weights = [weight.detach().clone() for weight in self._weights]
        self.adopt()
        try:
            yield
        finally:
            _copy(weights, self._weights)

    def adopt(self) -> None:
        """Give the network the average for good."""
        _copy(self._average, self._weights)


@torch.no_grad()
def _copy(source: list[Tensor], target: list[nn.Parameter]) -> None:
    for values, parameter in zip(source, target, strict=True):
        parameter.copy_(values)
