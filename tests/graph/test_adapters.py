"""Gather and scatter by themselves: values, memory layout, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adaptify.graph.adapters import ChannelGather, ChannelScatter

CASES = {
    "first axis": ((2, 64, 5, 5), 1, torch.contiguous_format),
    "channels_last": ((2, 64, 5, 5), 1, torch.channels_last),
    "channels_last, one position": ((2, 64, 1, 1), 1, torch.channels_last),
    "tokens": ((2, 7, 64), -1, torch.contiguous_format),
    "vectors": ((2, 64), 1, torch.contiguous_format),
}
INDICES = {
    "all": list(range(64)),
    "scattered": list(range(0, 64, 3)),
    "one run": list(range(5, 30)),
    "long runs": [*range(3, 20), *range(40, 60)],
}


def stream_of(case: str) -> tuple[Tensor, int, torch.memory_format]:
    shape, axis, layout = CASES[case]
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).contiguous(memory_format=layout), axis, layout


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
@pytest.mark.parametrize("case", CASES)
def test_channels_are_taken_and_put_back_in_the_same_layout(case, index):
    stream, axis, layout = stream_of(case)
    gather, scatter = ChannelGather(64, axis, index), ChannelScatter(64, axis, index)
    table = torch.tensor(index)
    rows = gather(stream)
    assert torch.equal(rows, stream.index_select(axis, table))
    zeros = torch.zeros_like(stream)
    assert torch.equal(scatter(rows), zeros.index_copy(axis, table, rows))
    before = stream.clone()
    total = scatter(rows, stream)
    assert torch.equal(total, stream.index_add(axis, table, rows))
    assert torch.equal(stream, before)
    assert all(value.is_contiguous(memory_format=layout) for value in (rows, scatter(rows), total))


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
@pytest.mark.parametrize("case", CASES)
def test_gradients_pass_through(case, index):
    stream, axis, _ = stream_of(case)
    weights = torch.randn(stream.shape, generator=torch.Generator().manual_seed(1))
    stream.requires_grad_()
    rows = ChannelGather(64, axis, index)(stream)
    scatter = ChannelScatter(64, axis, index)
    ((scatter(2 * rows, stream) + scatter(rows)) * weights).sum().backward()
    table = torch.tensor(index)
    expected = weights.index_add(axis, table, 3 * weights.index_select(axis, table))
    assert stream.grad is not None
    assert torch.allclose(stream.grad, expected)


def test_all_channels_pass_without_a_copy():
    stream = torch.randn(2, 4, 3, 3)
    assert ChannelGather(4, 1)(stream) is stream
    assert ChannelScatter(4, 1)(stream) is stream


def test_a_constant_is_added_everywhere():
    stream, constant = torch.randn(2, 4, 3, 3), torch.randn(1, 2, 1, 1)
    for layout in (torch.contiguous_format, torch.channels_last):
        total = ChannelScatter(4, 1, [1, 2])(constant, stream.contiguous(memory_format=layout))
        assert torch.equal(total[:, 1:3], stream[:, 1:3] + constant)
        assert torch.equal(total[:, [0, 3]], stream[:, [0, 3]])


def test_rows_of_another_precision_are_promoted_as_in_an_addition():
    stream, rows = torch.randn(2, 4, 3, 3, dtype=torch.bfloat16), torch.randn(2, 2, 3, 3)
    total = ChannelScatter(4, 1, [0, 3])(rows, stream)
    assert total.dtype == torch.float32
    assert torch.equal(total[:, [0, 3]], stream[:, [0, 3]] + rows)


def test_cutting_renumbers_the_stream():
    gather = ChannelGather(6, 1, [0, 2, 3, 5])
    gather.cut(torch.tensor([1, 0, 0, 1, 1, 1]).bool(), torch.tensor([1, 0, 1, 1]).bool())
    stream = torch.randn(1, 4, 2, 2)
    assert torch.equal(gather(stream), stream[:, [0, 1, 3]])


def test_a_row_cannot_stay_without_its_channel():
    with pytest.raises(ValueError, match="without its channel"):
        ChannelScatter(3, 1).cut(torch.tensor([True, False, True]), torch.ones(3).bool())


def test_adapters_have_nothing_to_save():
    assert not ChannelGather(4, 1, [1]).state_dict()
