"""The two ways in which the command line shows progress: bars on a terminal, sparse lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from adaptify.progress import Stage
from adaptify.text import duration, printable, whole

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_SECONDS_BETWEEN_LINES = 30.0


class LineProgress:
    """A line when a stage has run for a while, and one when it is done: for logs and pipes."""

    def __init__(self, every: float = _SECONDS_BETWEEN_LINES) -> None:
        self.every = every

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        """Print how far the stage is every `every` seconds, and how long it took."""
        stage = _LineStage(name, total, self.every)
        yield stage
        self.note(stage.summary())

    def note(self, message: str) -> None:
        """Print the message on stderr."""
        _tell(message)


class _LineStage:
    def __init__(self, name: str, total: int | None, every: float) -> None:
        self.name, self.total, self.every = printable(name), total, every
        self.done = 0
        self.figures: dict[str, float] = {}
        self.started = self.last_line = time.monotonic()

    def advance(self, n: int = 1, **figures: float) -> None:
        """Count, and print a line if the last one is long ago."""
        self.done += n
        self.figures.update(figures)
        now = time.monotonic()
        if now - self.last_line >= self.every:
            self.last_line = now
            told = figures_line(self.figures)
            _tell(f"{self.name}: {whole(self.done)}{self._share(now)}{told}")

    def _share(self, now: float) -> str:
        """Of how many units, and how long the others will take at this pace."""
        if not self.total:
            return ""
        percent = 100 * self.done // self.total
        left = (now - self.started) * (self.total - self.done) / self.done if self.done else 0.0
        return f"/{whole(self.total)} ({percent}%)" + (f", {duration(left)} left" if left > 0 else "")

    def summary(self) -> str:
        """Return the line that stays when the stage is done."""
        return summary_line(self.name, time.monotonic() - self.started, self.figures)


class BarProgress:
    """Bars that vanish when their stage is done, leaving one line; nested stages get bars below."""

    def __init__(self) -> None:
        self._bars: RichProgress | None = None
        self._depth = 0

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        """Draw a bar while the stage lasts."""
        bars = self._bars or self._draw()
        self._depth += 1
        name = printable(name)
        stage = _BarStage(bars, bars.add_task(name, total=total, figures=""))
        started = time.monotonic()
        finished = False
        try:
            yield stage
            finished = True
        finally:
            self._depth -= 1
            bars.remove_task(stage.task)
            if self._depth == 0:
                bars.stop()
                self._bars = None
            if finished and self._depth == 0:
                self.note(summary_line(name, time.monotonic() - started, stage.figures))

    def note(self, message: str) -> None:
        """Print the message on stderr, above the bars if there are any."""
        if self._bars is not None:
            self._bars.console.print(message, markup=False, highlight=False, emoji=False, soft_wrap=True)
        else:
            _tell(message)

    def _draw(self) -> RichProgress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        # On a narrow terminal figures go on in a second line; counts and times are never cut.
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(elapsed_when_finished=True, table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[figures]}", markup=False, style="dim", table_column=Column()),
            console=Console(stderr=True),
            transient=True,
        )
        self._bars.start()
        return self._bars


class _BarStage:
    def __init__(self, bars: RichProgress, task: TaskID) -> None:
        self.bars, self.task = bars, task
        self.figures: dict[str, float] = {}

    def advance(self, n: int = 1, **figures: float) -> None:
        """Move the bar."""
        self.figures.update(figures)
        self.bars.update(self.task, advance=n, figures=figures_line(self.figures).strip())


def _tell(message: str) -> None:
    """Print on stderr; where nobody listens any more (a closed pipe or terminal), work goes on."""
    with suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)


def figures_line(figures: dict[str, float]) -> str:
    """Write figures for a line of progress.

    >>> figures_line({"loss": 0.31428, "rate": 1200.0})
    '  loss 0.3143  rate 1200'
    """
    return "".join(f"  {name} {value:.4g}" for name, value in figures.items())


def summary_line(name: str, seconds: float, figures: dict[str, float]) -> str:
    """Write the line that a finished stage leaves."""
    return f"{name:<28} {duration(seconds):>9}{figures_line(figures)}"
