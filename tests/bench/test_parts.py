"""Where time goes, by a clock that only the parts move on."""

from __future__ import annotations

from contextlib import suppress

import torch

from adaptify.bench.parts import OTHER, Stopwatch
from adaptify.runtime.compaction import put_rows, take_rows
from adaptify.runtime.spans import GATES, NETWORK, ROWS, Listener, listening, span

CPU = torch.device("cpu")


class Clock:
    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


class Notes(Listener):
    def __init__(self) -> None:
        self.said: list[str] = []

    def enter(self, part: str, index: int) -> None:
        self.said.append(f"{part} {index}")

    def leave(self) -> None:
        self.said.append("over")


def test_each_part_has_its_own_time_without_those_inside_it() -> None:
    clock = Clock()
    watch = Stopwatch(CPU, clock)
    for _ in range(2):
        with watch.running():
            clock.now += 1
            with span(NETWORK, 3):
                clock.now += 10
                with span(ROWS):
                    clock.now += 100
                clock.now += 20
            with span(GATES):
                clock.now += 1000
            clock.now += 2
        clock.now += 1e6  # between two runs
        with span(NETWORK, 3):
            clock.now += 1e6
    assert watch.seconds() == {(OTHER, 0): 6, (NETWORK, 3): 60, (ROWS, 0): 200, (GATES, 0): 2000}


def test_an_error_inside_a_part_ends_it() -> None:
    clock = Clock()
    watch = Stopwatch(CPU, clock)
    with watch.running():
        with suppress(RuntimeError), span(NETWORK):
            clock.now += 1
            raise RuntimeError
        clock.now += 2
    assert watch.seconds() == {(NETWORK, 0): 1, (OTHER, 0): 2}


def test_only_who_listens_is_told() -> None:
    notes = Notes()
    batch, rows = torch.zeros(3, 2), torch.tensor([1])
    take_rows(batch, rows)
    with listening(notes):
        put_rows(batch, rows, take_rows(batch, rows) + 1)
    put_rows(batch, rows, take_rows(batch, rows))
    assert notes.said == ["rows 0", "over", "rows 0", "over"]
    assert batch.tolist() == [[0, 0], [1, 1], [0, 0]]
