"""Interleaved timing: on a busy machine, only ratios of neighbouring runs mean something.

Functions are run in turns, A B C A B C ..., so that whatever slows the machine down slows all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Run = Callable[[], object]
Clock = Callable[[], float]

_MOST_ROUNDS = 10_000


@dataclass(frozen=True)
class Spread:
    """What repeated measurements of one thing say: half of them lie between the quartiles.

    Attributes:
        median: In the unit of what was measured.
        low: The lower quartile.
        high: The upper quartile.
        count: How many measurements.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value.

        >>> Spread.of([3.0, 1.0, 2.0, 4.0, 5.0])
        Spread(median=3.0, low=2.0, high=4.0, count=5)
        """
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))

    def scaled(self, factor: float) -> Spread:
        """The same in another unit."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.count)


def interleaved(
    functions: Sequence[Run],
    rounds: int,
    warmup: int = 2,
    *,
    seconds: float | None = None,
    device: torch.device | str = "cpu",
    clock: Clock = time.perf_counter,
) -> list[list[float]]:
    """Run the functions in turns, and return the seconds of each: as many numbers as there were rounds.

    Args:
        functions: What is run.
        rounds: How often; with `seconds`, at least that often.
        warmup: Rounds before, which are not measured: kernels are chosen and memory is taken there.
        seconds: Go on until so much time has passed.
        device: Where the functions compute; an accelerator is waited for before a clock is read.
        clock: Seconds since some moment.
    """
    for _ in range(warmup):
        for function in functions:
            function()
    times: list[list[float]] = [[] for _ in functions]
    wait(device)
    begun = clock()
    while len(times[0]) < rounds or (
        seconds is not None and clock() - begun < seconds and len(times[0]) < _MOST_ROUNDS
    ):
        for own, function in zip(times, functions, strict=True):
            started = clock()
            function()
            wait(device)
            own.append(clock() - started)
    return times


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median of the ratios of runs that were neighbours."""
    return ratio(numerator, denominator).median


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Spread of the ratios of runs that were neighbours."""
    return Spread.of([a / b for a, b in zip(numerator, denominator, strict=True)])


def wait(device: torch.device | str) -> None:
    """Return when `device` has done all that it was given; on a CPU that is always so."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
