"""A command that a launcher started in several processes: who does what, and who speaks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout

from adaptify.cli import boundary
from adaptify.errors import AdaptifyError
from adaptify.parallel import launch

SHARED = ("retrofit", "prune", "evaluate")
"""The commands that several processes run together; all others are run by the main one alone."""


def run(words: Sequence[str], command: Callable[[], object]) -> object:
    """Run the command that `words` name, in all processes or in the main one.

    The others say nothing, unless one fails for a reason of its own.

    Args:
        words: The arguments of the command line.
        command: Runs it in this process.

    Returns:
        What the command returns, or an exit code.
    """
    if launch.count() == 1:
        return command()
    is_main = launch.rank() == 0
    if next((word for word in words if not word.startswith("-")), None) not in SHARED:
        return command() if is_main else 0
    with ExitStack() as stack:
        if not is_main:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        return _in_step(command, is_main)


def _in_step(command: Callable[[], object], is_main: bool) -> object:
    # Torch is imported here at the latest, as late as the command itself would.
    from adaptify.parallel.failure import PeerError, main_says
    from adaptify.parallel.group import processes

    try:
        with processes():
            return command()
    except KeyboardInterrupt:
        if is_main:
            raise
        return boundary.INTERRUPTED
    except Exception as error:
        if is_main:
            raise
        if isinstance(error, PeerError) or main_says(error):
            return boundary.explain(error)[2]
        if isinstance(error, AdaptifyError):
            error.message = f"process {launch.rank()} of {launch.count()}: {error.message}"
        raise
