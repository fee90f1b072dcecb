"""Blocks in a row whose gates are decided at once: rows that run the same blocks go through them together.

Where one network decides all blocks in advance (SGAD), what a row will run is known before the first of them.
Rows with the same mask then need no moving between blocks: a batch is cut into groups, each runs what it
runs, and the rows are put back in order once. Which is faster, this or each block for itself, follows from
the costs.

Notation: N rows, B blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adaptify.runtime.compaction import empty_batch, put_rows, take_rows
from adaptify.runtime.skipping.block import OVERHEAD_S, SkippingBlock
from adaptify.runtime.skipping.programs import Bits

Program = Callable[[Tensor], Tensor]


class Stretch:
    """Blocks in a row with layer gates only, and what lies between them.

    Args:
        parts: In the order of the network: a block, or the program of what is none.
    """

    def __init__(self, parts: Sequence[SkippingBlock | Program]) -> None:
        self._parts = tuple(parts)
        self.blocks = tuple(part for part in parts if isinstance(part, SkippingBlock))

    def run(self, x: Tensor, host: npt.NDArray[np.floating]) -> Tensor | None:
        """Run all of it for rows in groups.

        Args:
            x: (N, ...); it is left as it is.
            host: Gates (N, B).

        Returns:
            (N, ...), or None where each block for itself is faster, or where gates scale what they leave.
        """
        opened = host > 0
        if not (opened == host).all():
            return None
        if len(opened) == 1 or opened.all():
            return self._through(x, opened[0])
        masks, group = np.unique(opened, axis=0, return_inverse=True)
        if len(masks) == 1:
            return self._through(x, masks[0])
        group = group.reshape(-1)
        if self._in_groups(masks, np.bincount(group)) > self._one_by_one(opened):
            return None
        result: Tensor | None = None
        for index, mask in enumerate(masks):
            rows = torch.from_numpy((group == index).nonzero()[0]).to(x.device)
            values = self._through(take_rows(x, rows), mask)
            if result is None:
                result = empty_batch(len(x), values)
            put_rows(result, rows, values)
        return result

    def _through(self, x: Tensor, mask: Bits) -> Tensor:
        """Run rows that all have the same mask (B,)."""
        gates = iter(mask.tolist())
        for part in self._parts:
            if not isinstance(part, SkippingBlock):
                x = part(x)
            elif next(gates):
                x = part.programs.full(x)
            elif part.programs.skipped is not None:
                x = part.programs.skipped(x)
        return x

    def _in_groups(self, masks: Bits, sizes: npt.NDArray[np.int64]) -> float:
        """Seconds for groups of rows that run the blocks of `masks` (groups, B)."""
        fixed = np.array([block.cost.fixed for block in self.blocks])
        row = np.array([block.cost.row for block in self.blocks])
        moved = sizes.sum() * (self.blocks[0].cost.move + self.blocks[-1].cost.move) / 2
        computed = (masks * (fixed + sizes[:, None] * row)).sum()
        return float(computed + moved + len(sizes) * OVERHEAD_S)

    def _one_by_one(self, opened: Bits) -> float:
        """Seconds for the blocks one after the other, each for the rows that run it."""
        counts = opened.sum(0).tolist()
        return sum(
            block.seconds(count, len(opened)) for block, count in zip(self.blocks, counts, strict=True)
        )
