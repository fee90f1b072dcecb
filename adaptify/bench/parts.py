"""Where the time of a run goes: measured while it runs, part by part."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from adaptify.runtime.spans import listening

OTHER = "other"
"""What no part claims: putting results in order, and Python."""

Key = tuple[str, int]


class Stopwatch:
    """A listener that adds up the seconds of each part, without those of parts inside it.

    On a GPU the moments are marked among its own work (events), and nothing waits.

    Args:
        device: Where the network runs.
        clock: Seconds since some moment, for a CPU.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self._gpu = device if device.type == "cuda" else None
        self._clock = clock
        self._marks: list[tuple[Key, Any]] = []
        self._open: list[Key] = []

    def enter(self, part: str, index: int) -> None:
        """A part begins."""
        self._open.append((part, index))
        self._mark()

    def leave(self) -> None:
        """The part that began last is over."""
        self._open.pop()
        self._mark()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Listen to a run."""
        self._mark()
        with listening(self):
            yield
        self._mark(("", 0))

    def seconds(self) -> dict[Key, float]:
        """Seconds of each part (name, index) in all runs that were listened to."""
        if self._gpu is not None:
            torch.cuda.synchronize(self._gpu)
        found: dict[Key, float] = defaultdict(float)
        for (key, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            if key[0]:  # not between two runs
                found[key] += start.elapsed_time(end) / 1000 if self._gpu is not None else end - start
        return dict(found)

    def _mark(self, key: Key | None = None) -> None:
        """From now on it is `key`; by default the innermost part that is open."""
        if key is None:
            key = self._open[-1] if self._open else (OTHER, 0)
        if self._gpu is None:
            self._marks.append((key, self._clock()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((key, event))
