"""Which channels of a block to have a program for: those that samples ask for often enough to pay for it.

A program for some of the channels serves every sample that needs no others. It takes tens of milliseconds to
build, so it is built once it would have saved that time: whatever samples come, at most as much time is
spent on building as was lost by not having built before.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Any

import numpy as np

from adaptify.errors import ModelError
from adaptify.runtime.skipping.programs import Bits, Narrow, Programs

_CAPACITY = 12  # programs of a block
_ROOM = 4.0  # their MACs together, in those of the block: each holds a copy of a part of the weights
_REMEMBERED = 4096  # patterns whose losses are remembered
_FIRST_GUESS_S = 0.05  # what building takes, before anything was built


class Codebook:
    """The programs of a block for some of its channels, and what having others would save.

    Several threads may ask at once: one that builds keeps the others waiting, which may want the same.

    Args:
        programs: The block.

    Attributes:
        eager: Whether a program is built as soon as anything would be saved by it.
    """

    def __init__(self, programs: Programs) -> None:
        self.eager = False
        self._programs = programs
        self._built: OrderedDict[int, Narrow] = OrderedDict()
        self._best: dict[int, int | None] = {}
        self._lost: dict[int, float] = {}
        self._shares: dict[int, float] = {}
        self._hopeless: set[int] = set()
        self._everything = 0  # all patterns that came, together
        self._build_s = _FIRST_GUESS_S
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._built)

    def find(self, pattern: int) -> Narrow | None:
        """The smallest program that has all channels of a pattern (`as_number`); None: the whole block."""
        with self._lock:
            if pattern not in self._best:
                _bound(self._best)
                self._best[pattern] = self._smallest(pattern)
            found = self._best[pattern]
            if found is None:
                return None
            self._built.move_to_end(found)
            return self._built[found]

    def note(self, pattern: int, opened: Bits, used: float, seconds: float) -> None:
        """Take down what rows lose for want of a program of their own, and build one when that pays.

        Candidates are the channels that these rows need, and all that any rows ever needed.

        Args:
            pattern: What the rows need, as a number.
            opened: The same, (K,).
            used: Share of the block that the rows ran.
            seconds: What they would take in the whole block.
        """
        with self._lock:
            self._everything |= pattern
            if used <= self._share(pattern, opened):
                return  # and a program for more than these channels would save less than one for them
            together = as_bits(self._everything, len(opened))
            for number, bits in {pattern: opened, self._everything: together}.items():
                gain = (used - self._share(number, bits)) * seconds
                if gain <= 0 or number in self._built or number in self._hopeless:
                    continue
                _bound(self._lost)
                self._lost[number] = self._lost.get(number, 0.0) + gain
                if self.eager or self._lost[number] > self._build_s:
                    self._build(number, bits)

    def _smallest(self, pattern: int) -> int | None:
        fitting = [
            number
            for number, item in self._built.items()
            if number == pattern or (pattern & ~number == 0 and item.masked is not None)
        ]
        return min(fitting, key=lambda number: self._built[number].share, default=None)

    def _share(self, pattern: int, opened: Bits) -> float:
        """MACs of a program for exactly this pattern, as a part of those of the whole block."""
        if pattern not in self._shares:
            _bound(self._shares)
            self._shares[pattern] = self._programs.share(opened)
        return self._shares[pattern]

    def _build(self, number: int, opened: Bits) -> None:
        started = time.perf_counter()
        del self._lost[number]
        try:
            self._built[number] = self._programs.narrow(opened)
        except ModelError:
            self._hopeless.add(number)
        self._build_s = time.perf_counter() - started
        while len(self._built) > _CAPACITY or sum(item.share for item in self._built.values()) > _ROOM:
            self._built.popitem(last=False)
        self._best.clear()


def as_number(opened: Bits) -> int:
    """A pattern (K,) as a number with a bit for each open gate, which compare quickly."""
    return int.from_bytes(np.packbits(opened).tobytes(), "big")


def as_bits(number: int, gates: int) -> Bits:
    """Inverse of `as_number`."""
    packed = np.frombuffer(number.to_bytes(-(-gates // 8), "big"), np.uint8)
    return np.unpackbits(packed, count=gates).astype(bool)


def _bound(table: dict[int, Any]) -> None:
    """Forget the oldest half of a table that has grown too large."""
    if len(table) > _REMEMBERED:
        for key in list(table)[: _REMEMBERED // 2]:
            del table[key]
