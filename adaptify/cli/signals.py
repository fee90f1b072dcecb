"""What Ctrl-C, SIGTERM and a terminal that closes do to a command: it cleans up and ends.

A second Ctrl-C ends it at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def stoppable() -> Iterator[None]:
    """Let signals end the block as exceptions, so that half-written files are removed on the way out.

    What was trained is on the disk since the last epoch: nothing has to be saved then, and nothing is lost
    when a second Ctrl-C ends the process where it is. Signals that are ignored, as for commands in the
    background, stay so.
    """
    try:
        before: dict[int, Any] = {signal.SIGTERM: signal.signal(signal.SIGTERM, _terminated)}
    except ValueError:  # not the main thread
        yield
        return
    closed = getattr(signal, "SIGHUP", None)  # the terminal has closed; there is none on Windows
    if closed is not None and signal.getsignal(closed) is signal.SIG_DFL:
        before[closed] = signal.signal(closed, _terminated)
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
