"""Taking rows out of a batch and putting them back keeps values and memory layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adaptify.runtime.compaction import empty_batch, put_rows, take_rows


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


SHAPES = [(6, 4, 5, 3), (6, 1, 5, 5), (6, 4, 1, 1), (6, 7), (6, 5, 8)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]


def batch_of(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    batch = torch.randint(-100, 100, shape, generator=generator).to(dtype)
    if channels_last and len(shape) == 4:
        batch = batch.contiguous(memory_format=torch.channels_last)
    return batch


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("rows", [[0], [5, 2], [3, 0, 1, 2, 5, 4], []])
def test_rows_that_were_taken_are_put_back(
    shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, rows: list[int]
) -> None:
    batch, other = (batch_of(shape, dtype, channels_last, seed) for seed in (0, 1))
    index = torch.tensor(rows, dtype=torch.int64)
    strides = other.stride()
    wanted = other.clone()
    wanted[index] = batch[index]
    put_rows(other, index, take_rows(batch, index))
    assert torch.equal(other, wanted)
    assert other.stride() == strides


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_rows_that_were_put_are_taken(shape: tuple[int, ...], channels_last: bool) -> None:
    batch = batch_of(shape, torch.float32, channels_last)
    rows = torch.tensor([4, 1, 3])
    values = batch_of((3, *shape[1:]), torch.float32, channels_last, 1)
    put_rows(batch, rows, values)
    assert torch.equal(take_rows(batch, rows), values)


@pytest.mark.parametrize("layouts", [(False, True), (True, False)])
def test_values_may_come_in_another_layout(layouts: tuple[bool, bool]) -> None:
    batch = batch_of((5, 4, 3, 2), torch.float32, layouts[0])
    values = batch_of((2, 4, 3, 2), torch.float32, layouts[1], 1)
    wanted = batch.clone()
    wanted[[3, 0]] = values
    put_rows(batch, torch.tensor([3, 0]), values)
    assert torch.equal(batch, wanted)


def test_views_are_written_through() -> None:
    whole = batch_of((6, 8), torch.float32, False)
    wanted = whole.clone()
    wanted[[4, 1], 2:5] = 7
    put_rows(whole[:, 2:5], torch.tensor([4, 1]), torch.full((2, 3), 7.0))
    assert torch.equal(whole, wanted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_an_empty_batch_is_laid_out_like_its_rows(shape: tuple[int, ...], channels_last: bool) -> None:
    rows = batch_of((2, *shape[1:]), torch.float16, channels_last)
    empty = empty_batch(9, rows)
    assert empty.shape == (9, *shape[1:])
    assert empty.dtype == torch.float16
    assert empty.is_contiguous() == rows.is_contiguous()
    assert empty[:2].stride() == rows.stride() or rows.is_contiguous()
