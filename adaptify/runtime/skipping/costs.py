"""What blocks take on this machine, measured once and remembered.

n rows of a block take `fixed + n * row` seconds, and to take a row out of the batch and put it back takes
`move` more. That is enough to tell which of the ways to run a block is the fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from adaptify.runtime.compaction import put_rows, take_rows
from adaptify.runtime.machine import MachineTable, cost_key
from adaptify.runtime.timing import Run, Spread, interleaved

__all__ = ["BlockCost", "CostTable", "cost_key", "measure_block"]

_SIZES = (1, 2, 8)
_REPEATS = 5


@dataclass(frozen=True)
class BlockCost:
    """Seconds of a block: `fixed + n * row` for n rows, and `move` to take a row out and put it back."""

    fixed: float
    row: float
    move: float

    def run(self, rows: int, share: float = 1.0) -> float:
        """Seconds for `rows` rows of a program with this share of the block's MACs."""
        return self.fixed + rows * self.row * share


class CostTable(MachineTable[BlockCost]):
    """Costs of blocks by what they are, kept in a file of the user's cache folder."""

    file = "block-costs.json"

    @staticmethod
    def parse(value: Mapping[str, float]) -> BlockCost:
        """Make a cost of its JSON."""
        return BlockCost(**{name: float(number) for name, number in value.items()})


@torch.inference_mode()
def measure_block(
    run: Callable[..., Tensor],
    shape: tuple[int, ...],
    memory_format: torch.memory_format,
    device: torch.device,
    beside: Callable[[Tensor], tuple[Tensor, ...]] = lambda x: (),
) -> BlockCost:
    """Measure a block for rows of `shape` (without the batch); takes about fifty times what a row takes.

    Args:
        run: The block.
        shape: Of a row of its first input.
        memory_format: That of maps.
        device: Where it runs.
        beside: Makes its other inputs of the first; that is not measured.
    """
    firsts = [_batch(size, shape, memory_format, device) for size in _SIZES]
    batches = [(x, *beside(x)) for x in firsts]
    seconds = [_median(partial(run, *batch), device) for batch in batches]
    row, fixed = np.polyfit(_SIZES, seconds, 1)
    row = max(float(row), seconds[-1] / _SIZES[-1] / 2)
    batch = batches[-1]
    half = torch.arange(0, _SIZES[-1], 2, device=device)

    def move() -> None:
        first, *_ = [take_rows(value, half) for value in batch]
        put_rows(batch[0], half, first)

    return BlockCost(max(float(fixed), 0.0), row, _median(move, device) / len(half))


def _batch(
    size: int, shape: tuple[int, ...], memory_format: torch.memory_format, device: torch.device
) -> Tensor:
    batch = torch.rand(size, *shape, device=device)
    return batch.contiguous(memory_format=memory_format) if batch.dim() == 4 else batch


def _median(run: Run, device: torch.device) -> float:
    (seconds,) = interleaved([run], _REPEATS, 1, device=device)
    return Spread.of(seconds).median
