"""The memory layout of a network while it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def channels_last(model: nn.Module, device: torch.device, wanted: bool = True) -> Iterator[None]:
    """Bring `model` to `device`, and its filters to channels-last layout while the block lasts.

    Convolutions are quicker in it. The plain layout returns afterwards: it is what the rest of adaptify
    works with. Parameters stay the same objects.

    Args:
        model: Any network.
        device: Where it goes, and stays.
        wanted: Whether to change the layout at all.
    """
    model.to(device)
    if not wanted:
        yield
        return
    _set_layout(model, torch.channels_last)
    try:
        yield
    finally:
        _set_layout(model, torch.contiguous_format)


def _set_layout(model: nn.Module, layout: torch.memory_format) -> None:
    model.to(memory_format=layout)
    if isinstance(getattr(model, "memory_format", None), torch.memory_format):
        model.memory_format = layout  # type: ignore[assignment]  # what an adaptive network brings images to
