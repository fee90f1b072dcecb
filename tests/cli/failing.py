"""Runs the command line, in which one process fails: `python failing.py RANK HOW adaptify-arguments`.

HOW is `refuse` (an error of adaptify in the third step of training), `break` (a bug there), or `kill`
(SIGKILL after the first state of training was written).
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from adaptify.cli.main import main
from adaptify.errors import AdaptifyError
from adaptify.parallel import launch


def fail_in_step(error: Exception) -> None:
    """Let the third step of training raise an error."""
    from adaptify.training.loop import _Loop

    step = _Loop._step

    def failing(self: _Loop, number: int) -> None:
        if number == 2:
            raise error
        step(self, number)

    _Loop._step = failing


def killed_after_a_state() -> None:
    """Let the process be killed in the second epoch."""
    from adaptify.training.loop import _Loop

    train = _Loop._train

    def failing(self: _Loop, epoch: int, *rest: Any) -> Any:
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return train(self, epoch, *rest)

    _Loop._train = failing


if __name__ == "__main__":
    _, rank, how, *words = sys.argv
    if int(rank) == launch.rank():
        if how == "kill":
            killed_after_a_state()
        else:
            fail_in_step(AdaptifyError("no more", "Stop here.") if how == "refuse" else ValueError("broken"))
    sys.exit(main(words))
