"""Taking rows out of a batch keeps values and memory layout."""

from __future__ import annotations

import pytest
import torch

from adaptify.runtime.compaction import take_rows


@pytest.mark.parametrize("shape", [(6, 4, 5, 3), (6, 1, 5, 5), (6, 4, 1, 1), (6, 7), (6, 5, 8)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("rows", [[0], [5, 2], [0, 1, 2, 3, 4, 5], []])
def test_rows_are_those_of_plain_indexing(
    shape: tuple[int, ...], channels_last: bool, rows: list[int]
) -> None:
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if channels_last and len(shape) == 4:
        batch = batch.contiguous(memory_format=torch.channels_last)
    index = torch.tensor(rows, dtype=torch.int64)
    assert torch.equal(take_rows(batch, index), batch[index])


def test_channels_last_stays_channels_last() -> None:
    batch = torch.randn(6, 4, 5, 3).contiguous(memory_format=torch.channels_last)
    taken = take_rows(batch, torch.tensor([4, 1]))
    assert taken.is_contiguous(memory_format=torch.channels_last)
    assert not taken.is_contiguous()
