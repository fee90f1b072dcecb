"""The timer of the package, by the name under which benchmarks know it, and the clocks it can be given."""

import argparse
import time

from adaptify.runtime.timing import Clock, interleaved, median_ratio

__all__ = ["CLOCKS", "add_clock", "interleaved", "median_ratio"]

CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "thread": time.thread_time}


def add_clock(parser: argparse.ArgumentParser) -> None:
    """Let the user choose a clock: `arguments.clock` is a key of `CLOCKS`."""
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="thread: time on the processor, for one thread of a machine that is busy with other things",
    )
