"""A run that is a part of something larger: a stage, or a point of a sweep."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from adaptify.errors import TargetError
from adaptify.pipeline import folder
from adaptify.pipeline.prune import prune
from adaptify.pipeline.retrofit import retrofit
from adaptify.pipeline.unfinished import find_unfinished
from adaptify.progress import Progress, Stage
from adaptify.recipe import Recipe
from adaptify.reports.schema import Report

Command = Literal["retrofit", "prune"]


def run_part(command: Command, recipe: Recipe, target: Path, progress: Progress) -> Report:
    """Do a run in the folder `target`, or what is left of it.

    Raises:
        TargetError: There was nothing to remove, or the target cannot be met.
        AdaptifyError: As the command does.
    """
    left = find_unfinished(target, command) if folder.left_behind(target) else None
    output = None if left else target
    if command == "retrofit":
        return retrofit(recipe, output=output, resume=left, progress=progress).report
    done = prune(recipe, output=output, resume=left, progress=progress)
    if done is None:
        raise TargetError(
            f"{target.name} has nothing to remove: each block is run by some image",
            "Leave it out, or train the gates towards less.",
        )
    return done.report


class Within:
    """A `Progress` that says of which part it speaks.

    Args:
        progress: Where it speaks.
        name: What the part is called.
    """

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._name = name

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Stage]:
        """Open a stretch of work."""
        return self._progress.stage(name, total)

    def note(self, message: str) -> None:
        """Say one thing, with the part that it is about."""
        self._progress.note(f"{self._name}: {message}")
