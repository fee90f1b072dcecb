"""Runs the command line and kills it: `python killing.py WHERE COUNT adaptify-arguments`.

WHERE is `state` (after the COUNT-th state of training was written), `epoch` (when that epoch's weights are
written, its state is not), `publish` (before the run folder gets its name), or `leave` (hangs while it cleans
up, to be killed from outside).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adaptify.cli.main import main


def kill_at(owner: Any, name: str, count: int, *, after: bool) -> None:
    """Let the process be killed at the `count`-th call of a function."""
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **named)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)


def hang(*_: Any) -> None:
    Path("hanging").touch()
    time.sleep(600)


if __name__ == "__main__":
    _, where, count, *words = sys.argv
    from adaptify.pipeline import folder, run_files
    from adaptify.training.state import States

    if where == "leave":
        folder._leave = hang
    else:
        owner, name, after = {
            "state": (States, "save", True),
            "epoch": (States, "save", False),
            "publish": (run_files, "write_html", True),
        }[where]
        kill_at(owner, name, int(count), after=after)
    sys.exit(main(words))
