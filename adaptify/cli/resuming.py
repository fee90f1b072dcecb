"""`--resume`: which unfinished run is meant, and what cannot be asked for beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptify.errors import UsageError

if TYPE_CHECKING:
    from adaptify.pipeline.unfinished import Command, Unfinished


def refuse(beside: Mapping[str, Any]) -> None:
    """Refuse options that make no sense beside `--resume`, by their names, as they were given.

    Raises:
        UsageError: One of them was given.
    """
    for option, value in beside.items():
        if value:
            raise UsageError(
                f"{option} does not go with --resume: a run goes on as it began", f"Leave {option} out."
            )


def find_staged(given: str | None) -> Path | None:
    """Return the run of several stages to go on with: that which was named, or the newest of all runs."""
    from adaptify.parallel import group
    from adaptify.pipeline.folder import RUNS
    from adaptify.pipeline.staged import INDEX, newest_stopped

    if given is None:
        return group.from_main(newest_stopped() if group.is_main() else None)
    places = (Path(given), RUNS / given)
    return next((place for place in places if (place / INDEX).is_file()), None)


def find(command: Command, given: str | None) -> Unfinished:
    """Return the run to go on with.

    Args:
        command: The command that is asked to go on.
        given: What the user named: a folder, or None for the newest.

    Raises:
        UsageError: There is no such run.
    """
    from adaptify.parallel import group
    from adaptify.pipeline.unfinished import find_unfinished, read_unfinished

    # Looking for it takes locks: one process does that for all.
    run = find_unfinished(Path(given) if given is not None else None, command) if group.is_main() else None
    found = group.from_main(run.folder if run is not None else None)
    assert found is not None
    return run or read_unfinished(found)
