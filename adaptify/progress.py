"""How long work tells how far it has come, without knowing who listens.

The library takes a `Progress` and never prints; the command line passes one that draws bars.

    with progress.stage("train gates", total=epochs) as stage:
        for epoch in range(epochs):
            ...
            stage.advance(loss=0.31)
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Stage(Protocol):
    """One stretch of work that is under way."""

    def advance(self, n: int = 1, **figures: float) -> None:
        """Report that `n` more units are done, with what can be said of them so far (a loss, a rate).

        A figure stays until it is told anew; `n` may be 0 when there are only figures to tell.
        """


class Progress(Protocol):
    """Where work reports to."""

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Stage]:
        """Open a stretch of work of `total` units (`None`: unknown); stages may nest."""

    def note(self, message: str) -> None:
        """Say one thing the user should know: what was chosen, assumed or left out."""


class _SilentStage:
    def advance(self, n: int = 1, **figures: float) -> None:
        """Do nothing."""


class SilentProgress:
    """A `Progress` that nobody listens to: the default of every function of the library."""

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Stage]:
        """Return a stage that reports to nobody."""
        return nullcontext(_SilentStage())

    def note(self, message: str) -> None:
        """Do nothing."""


SILENT: Progress = SilentProgress()
