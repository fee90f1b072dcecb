"""Interleaved timing: on a shared machine only ratios of neighbouring runs mean something."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence


def interleaved(functions: Sequence[Callable[[], object]], rounds: int, warmup: int = 2) -> list[list[float]]:
    """Run the functions in turn, A B A B ..., and return the seconds of each: `rounds` numbers a function."""
    for _ in range(warmup):
        for function in functions:
            function()
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for times, function in zip(seconds, functions, strict=True):
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
    return seconds


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median of the ratios of runs that were neighbours."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))
