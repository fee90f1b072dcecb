"""How many threads compute what is small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Below this, waiting for each other costs two threads more than they save, and ten times as much where
# another program has one of the cores.
_SMALL = 8_000_000


@contextmanager
def threads_for(macs: int) -> Iterator[None]:
    """Compute with one thread where a step has few MACs, and with as many as before where it has more.

    Args:
        macs: Multiply-adds of a step on the processor.
    """
    before = torch.get_num_threads()
    try:
        if macs < _SMALL:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)
