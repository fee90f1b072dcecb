"""Taking rows out of a batch and putting them back, in the memory layout the batch has.

Indexing a channels_last tensor directly would give a tensor in the default format, at many times the cost,
and every convolution after it would convert again. A view whose rows are contiguous is indexed instead.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adaptify.runtime.spans import ROWS, span


def take_rows(batch: Tensor, rows: Tensor) -> Tensor:
    """Return the given rows of `batch` (N, ...), in the same memory format.

    Args:
        batch: (N, ...) of any shape.
        rows: (K,) int64.
    """
    with span(ROWS):
        if not _is_channels_last(batch):
            return batch.index_select(0, rows)
        _, c, h, w = batch.shape
        return _flat(batch).index_select(0, rows).view(-1, h, w, c).permute(0, 3, 1, 2)


def empty_batch(rows: int, like: Tensor) -> Tensor:
    """Return a batch (rows, ...) that is still to be written, in the memory format of `like` (K, ...)."""
    layout = torch.channels_last if _is_channels_last(like) else torch.contiguous_format
    return torch.empty((rows, *like.shape[1:]), dtype=like.dtype, device=like.device, memory_format=layout)


def put_rows(batch: Tensor, rows: Tensor, values: Tensor) -> None:
    """Write `values` (K, ...) over the given rows of `batch` (N, ...), in place.

    Args:
        batch: (N, ...) of any shape.
        rows: (K,) int64, without repetitions.
        values: (K, ...), best in the memory format of `batch`.
    """
    with span(ROWS):
        _put(batch, rows, values)


def _put(batch: Tensor, rows: Tensor, values: Tensor) -> None:
    if _is_channels_last(batch):
        flat, new = _flat(batch), values.permute(0, 2, 3, 1)
    elif batch.is_contiguous():
        flat, new = batch.view(batch.shape[0], -1), values
    else:
        batch.index_copy_(0, rows, values)
        return
    # The width is told, as no rows at all would not tell it.
    new = new.reshape(len(rows), flat.shape[1])
    if batch.device.type == "cpu":
        # NumPy copies whole rows, three to five times as fast.
        _bytes(flat)[rows.numpy()] = _bytes(new)
    else:
        flat.index_copy_(0, rows, new)


def _bytes(rows: Tensor) -> npt.NDArray[np.uint8]:
    return rows.detach().view(torch.uint8).numpy()


def _is_channels_last(batch: Tensor) -> bool:
    return (
        batch.dim() == 4
        and batch.is_contiguous(memory_format=torch.channels_last)
        and not batch.is_contiguous()
    )


def _flat(batch: Tensor) -> Tensor:
    """The rows of a channels_last tensor (N, C, H, W), as (N, H * W * C)."""
    return batch.permute(0, 2, 3, 1).view(batch.shape[0], -1)
