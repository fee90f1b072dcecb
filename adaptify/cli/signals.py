"""What Ctrl-C and SIGTERM do to a command: it cleans up and ends; a second Ctrl-C ends it at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stoppable() -> Iterator[None]:
    """Let signals end the block as exceptions, so that half-written files are removed on the way out.

    What was trained is on the disk since the last epoch: nothing has to be saved then, and nothing is lost
    when a second Ctrl-C ends the process where it is. Signals that are ignored, as for commands in the
    background, stay so.
    """
    try:
        before = {signal.SIGTERM: signal.signal(signal.SIGTERM, _terminated)}
    except ValueError:  # not the main thread
        yield
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _interrupted)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminated(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _interrupted(number: int, frame: FrameType | None) -> None:
    signal.signal(number, _interrupted_again)
    raise KeyboardInterrupt


def _interrupted_again(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)
