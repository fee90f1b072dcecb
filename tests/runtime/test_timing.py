"""Timing by a clock that only what is timed moves on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from adaptify.runtime.timing import Spread, interleaved, median_ratio, ratio


class Clock:
    """Stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0
        self.ran: list[str] = []

    def __call__(self) -> float:
        return self.now

    def task(self, name: str, *takes: float) -> Callable[[], None]:
        """Something that takes so many seconds: the first time, the second time, ..., and then the last."""
        left = list(takes)

        def run() -> None:
            self.ran.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_functions_run_in_turns_and_each_has_its_own_times(clock: Clock) -> None:
    times = interleaved([clock.task("a", 1.0), clock.task("b", 2.0, 4.0)], 3, 0, clock=clock)
    assert "".join(clock.ran) == "ababab"
    assert times == [[1.0, 1.0, 1.0], [2.0, 4.0, 4.0]]


def test_what_is_slow_at_first_is_not_measured(clock: Clock) -> None:
    (times,) = interleaved([clock.task("a", 50.0, 30.0, 1.0)], 2, warmup=2, clock=clock)
    assert times == [1.0, 1.0]
    assert len(clock.ran) == 4


@pytest.mark.parametrize(("seconds", "rounds"), [(None, 2), (0.0, 2), (9.0, 3), (9.1, 4), (40.0, 14)])
def test_it_goes_on_until_the_time_is_up(seconds: float | None, rounds: int, clock: Clock) -> None:
    tasks = [clock.task("a", 1.0), clock.task("b", 2.0)]
    times = interleaved(tasks, 2, warmup=1, seconds=seconds, clock=clock)
    assert [len(own) for own in times] == [rounds, rounds]


def test_a_clock_that_stands_still_ends_nothing_too_late(clock: Clock) -> None:
    (times,) = interleaved([clock.task("a", 0.0)], 1, seconds=1.0, clock=clock)
    assert 1 < len(times) <= 10_000


def test_half_of_the_values_lie_between_the_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0, 5)
    assert Spread.of([1.0, 2.0]) == Spread(1.5, 1.25, 1.75, 2)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 1)
    assert Spread(3.0, 2.0, 4.0, 5).scaled(10) == Spread(30.0, 20.0, 40.0, 5)


def test_ratios_are_of_neighbours() -> None:
    # The machine was ten times as slow in the second round, for both.
    ours, theirs = [1.0, 10.0, 1.0], [2.0, 20.0, 2.0]
    assert ratio(ours, theirs) == Spread(0.5, 0.5, 0.5, 3)
    assert median_ratio([1.0, 10.0, 4.0], theirs) == 0.5
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0], theirs)
