"""Taking rows out of a batch, in the memory layout the batch has."""

from __future__ import annotations

import torch
from torch import Tensor


def take_rows(batch: Tensor, rows: Tensor) -> Tensor:
    """Return the given rows of `batch` (N, ...), in the same memory format.

    Indexing a channels_last tensor directly would give a tensor in the default format, at many times
    the cost, and every convolution after it would convert again. A view whose rows are contiguous
    is gathered instead.

    Args:
        batch: (N, ...) of any shape.
        rows: (K,) int64.
    """
    channels_last = batch.dim() == 4 and batch.is_contiguous(memory_format=torch.channels_last)
    if channels_last and not batch.is_contiguous():
        n, c, h, w = batch.shape
        flat = batch.permute(0, 2, 3, 1).view(n, h * w * c)
        return flat.index_select(0, rows).view(-1, h, w, c).permute(0, 3, 1, 2)
    return batch.index_select(0, rows)
