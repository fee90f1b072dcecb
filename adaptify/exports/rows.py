"""Rows that go on and rows that do not, in operations that every runtime has.

A batch may lose all its rows: what runs on none is as good as not run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Then = Callable[..., tuple[Tensor, ...]]


def positions(chosen: Tensor) -> Tensor:
    """Where `chosen` (N,) bool is true: (K,) int64."""
    found = chosen.nonzero().squeeze(1)
    # Exporters cannot know this, and refuse to choose between kernels without it.
    torch._check(found.shape[0] <= chosen.shape[0])
    return found


def take(batch: Tensor, rows: Tensor) -> Tensor:
    """Return the given rows (K,) of (N, ...)."""
    return batch.index_select(0, rows)


def put(batch: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Return (N, ...) with `values` (K, ...) at the given rows (K,)."""
    return batch.index_copy(0, rows, values)


def choose(condition: Tensor, then: Then, otherwise: Then, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Run one of two branches, as `torch.cond`: `condition` is a bool without axes.

    Branches yield tensors of their own, alike in shape and type; what they use comes in as `inputs`.
    """
    result: tuple[Tensor, ...] = torch.cond(condition, then, otherwise, inputs)
    return result
