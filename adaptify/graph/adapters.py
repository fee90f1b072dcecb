"""Layers without weights between a residual stream and its blocks: which channels a block reads, and adds to.

Channels of a stream x + f(x) are the same for all its blocks. With a gather where a block reads the stream
and a scatter where it adds to it, each block has channels of its own, which can be closed one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_LONG_RUN = 16
"""Runs of neighbouring channels of this length are copied as such where channels are the innermost axis."""


class _Adapter(nn.Module):
    """Rows of a tensor, each standing for a channel of a stream.

    Attributes:
        channels: Channels C of the stream.
        axis: Channel axis of both tensors: 1 or -1.
        index: (R,) int64, the channel of the stream that each row stands for, ascending. It is not part of
            the state dict: it follows from the plan.
    """

    def __init__(self, channels: int, axis: int, index: Sequence[int] | None = None) -> None:
        """Make rows for the channels `index` of a stream of `channels`, by default for all of them."""
        super().__init__()
        self.channels = channels
        self.axis = axis
        self.rows = tuple(range(channels)) if index is None else tuple(index)
        self.index: Tensor
        self.register_buffer("index", torch.tensor(self.rows, dtype=torch.int64), persistent=False)
        self._runs = _find_runs(self.rows)

    @property
    def is_identity(self) -> bool:
        """Whether all channels of the stream are rows."""
        return len(self.rows) == self.channels

    def cut(self, stream: Tensor, rows: Tensor) -> None:
        """Leave only some channels, by masks: of the stream (C,), and of the rows (R,).

        Raises:
            ValueError: A row that stays stands for a channel that does not.
        """
        kept = [row for row, stays in zip(self.rows, rows.tolist(), strict=True) if stays]
        if not all(bool(stream[row]) for row in kept):
            raise ValueError("a row is left without its channel of the stream")
        numbers = (stream.cumsum(0) - 1).tolist()
        self.channels = int(stream.sum())
        self.rows = tuple(numbers[row] for row in kept)
        self.index = torch.tensor(self.rows, dtype=torch.int64, device=self.index.device)
        self._runs = _find_runs(self.rows)

    @property
    def _has_long_runs(self) -> bool:
        return len(self._runs) == 1 or len(self.rows) >= _LONG_RUN * len(self._runs)

    def extra_repr(self) -> str:
        """Rows and channels, for printing."""
        return f"rows={len(self.rows)}, channels={self.channels}, axis={self.axis}"


class ChannelGather(_Adapter):
    """Some channels of a stream: what a block reads."""

    def forward(self, x: Tensor) -> Tensor:
        """Map a stream with C channels to its R rows, in its memory layout; itself while these are all."""
        if self.is_identity:
            return x
        if not _is_innermost(x, self.axis):
            return x.index_select(self.axis, self.index)
        if self._has_long_runs:
            parts = [x.narrow(self.axis, start, length) for _, start, length in self._runs]
            return torch.cat(parts, self.axis)
        # As a matrix, since selecting along the inner axis of anything else is several times slower.
        last = x.movedim(self.axis, -1)
        rows = last.reshape(-1, self.channels).index_select(1, self.index)
        return rows.view(*last.shape[:-1], len(self.rows)).movedim(-1, self.axis)


class ChannelScatter(_Adapter):
    """Rows put at their places among the channels of a stream, zeros elsewhere: what a block adds."""

    def forward(self, x: Tensor, stream: Tensor | None = None) -> Tensor:
        """Map R rows to C channels, added to `stream` if there is one, in its memory layout.

        Args:
            x: The rows; axes of length 1 are repeated where there is a stream.
            stream: Tensor with C channels, left as it is.
        """
        if stream is None:
            return x if self.is_identity else self._alone(x)
        if self.is_identity:
            return stream + x
        if x.dtype != stream.dtype:  # under autocast
            common = torch.promote_types(x.dtype, stream.dtype)
            x, stream = x.to(common), stream.to(common)
        innermost = _is_innermost(stream, self.axis)
        if innermost and self._has_long_runs:
            result = stream.clone()
            for row, start, length in self._runs:
                result.narrow(self.axis, start, length).add_(x.narrow(self.axis, row, length))
            return result
        shape = list(stream.shape)
        shape[self.axis] = len(self.rows)
        x = x.expand(shape)
        if not innermost:
            return stream.index_add(self.axis, self.index, x)
        last = stream.movedim(self.axis, -1)
        return last.index_add(-1, self.index, x.movedim(self.axis, -1)).movedim(-1, self.axis)

    def _alone(self, x: Tensor) -> Tensor:
        axis = -1 if _is_innermost(x, self.axis) else self.axis
        x = x.movedim(self.axis, axis)
        shape = list(x.shape)
        shape[axis] = self.channels
        return x.new_zeros(shape).index_add_(axis, self.index, x).movedim(axis, self.axis)


def _is_innermost(x: Tensor, axis: int) -> bool:
    """Whether `axis` is the innermost in memory, as in channels_last: another way is fast there."""
    return x.stride(axis) == 1 and x.movedim(axis, -1).is_contiguous()


def _find_runs(rows: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Runs of neighbouring channels: (first row, first channel, length)."""
    runs: list[tuple[int, int, int]] = []
    for row, channel in enumerate(rows):
        if runs and channel == runs[-1][1] + runs[-1][2]:
            runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
        else:
            runs.append((row, channel, 1))
    return tuple(runs)


ADAPTERS = (ChannelGather, ChannelScatter)
"""All kinds of adapters."""


def adapter(module: object) -> ChannelGather | ChannelScatter | None:
    """Return `module` if it is an adapter."""
    return module if isinstance(module, ADAPTERS) else None
