"""Layers without weights between a residual stream and its blocks: which channels a block reads, and adds to.

Channels of a stream x + f(x) are the same for all its blocks. With a gather where a block reads the stream
and a scatter where it adds to it, each block has channels of its own, which can be closed one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


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

    def extra_repr(self) -> str:
        """Rows and channels, for printing."""
        return f"rows={len(self.rows)}, channels={self.channels}, axis={self.axis}"


class ChannelGather(_Adapter):
    """Some channels of a stream: what a block reads."""

    def forward(self, x: Tensor) -> Tensor:
        """Map a stream with C channels to its R rows; the stream itself while these are all."""
        return x if self.is_identity else x.index_select(self.axis, self.index)


class ChannelScatter(_Adapter):
    """Rows put at their places among the channels of a stream, zeros elsewhere: what a block adds."""

    def forward(self, x: Tensor, stream: Tensor | None = None) -> Tensor:
        """Map R rows to C channels, added to `stream` if there is one.

        Args:
            x: The rows; axes of length 1 are repeated where there is a stream.
            stream: Tensor with C channels, left as it is.
        """
        if self.is_identity:
            return x if stream is None else stream + x
        if stream is None:
            shape = list(x.shape)
            shape[self.axis] = self.channels
            return x.new_zeros(shape).index_copy(self.axis, self.index, x)
        shape = list(stream.shape)
        shape[self.axis] = len(self.rows)
        return stream.index_add(self.axis, self.index, x.expand(shape))


ADAPTERS = (ChannelGather, ChannelScatter)
"""All kinds of adapters."""


def adapter(module: object) -> ChannelGather | ChannelScatter | None:
    """Return `module` if it is an adapter."""
    return module if isinstance(module, ADAPTERS) else None
