"""What a command shows, and where: data on stdout, everything else on stderr.

`--json` makes stdout one JSON value and nothing more. `-q` leaves errors only, `-v` adds details. Rich
is imported when something is first drawn, so that `--help` stays quick.
"""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from adaptify.cli.progress import BarProgress, LineProgress
from adaptify.progress import SILENT, Progress, Stage
from adaptify.text import printable

if TYPE_CHECKING:
    from rich.console import RenderableType


class Console:
    """The voice of one command; also the `Progress` that it hands to the library.

    Args:
        json: Whether stdout carries one JSON value.
        quiet: Whether to say nothing but errors.
        verbose: 0, 1 for details, 2 for everything.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: int = 0) -> None:
        self.json = json
        self.level = -1 if quiet else verbose
        if self.level < 0:
            self._progress: Progress = SILENT
        else:
            self._progress = BarProgress() if sys.stderr.isatty() else LineProgress()

    def show(self, *renderables: RenderableType) -> None:
        """Print the result for people on stdout; nothing when stdout is JSON.

        Tables and rich text are fitted to the terminal; plain strings, and text that is not to wrap, are
        printed as they are.
        """
        if self.json:
            return
        from rich.console import Console as RichConsole
        from rich.text import Text

        console = RichConsole(highlight=False, markup=False, emoji=False)
        for renderable in renderables:
            whole = isinstance(renderable, str) or (isinstance(renderable, Text) and bool(renderable.no_wrap))
            console.print(renderable, soft_wrap=whole)

    def data(self, value: Any) -> None:
        """Print the result for programs on stdout, if `--json` asked for it."""
        if self.json:
            print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))

    def say(self, message: str) -> None:
        """Tell something on stderr, unless quiet."""
        self._tell(message, 0)

    def detail(self, message: str) -> None:
        """Tell something on stderr that only `-v` wants to know."""
        self._tell(message, 1)

    def warn(self, message: str) -> None:
        """Tell on stderr what the user should look into, unless quiet."""
        self._tell(f"warning: {message}", 0)

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Stage]:
        """Show a stretch of work: a bar on a terminal, sparse lines elsewhere."""
        return self._progress.stage(name, total)

    def note(self, message: str) -> None:
        """Show what the library has to say."""
        self._tell(message, 0)

    def _tell(self, message: str, level: int) -> None:
        if self.level >= level:
            self._progress.note("\n".join(printable(line) for line in message.splitlines()))
