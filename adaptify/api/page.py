"""A report as a notebook shows it."""

from __future__ import annotations

import html
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptify.files import write_text
from adaptify.reports.compare import Comparison, compare
from adaptify.reports.compare_html import render_comparison
from adaptify.reports.html import render_html
from adaptify.reports.schema import Report

if TYPE_CHECKING:
    from rich.console import RenderableType

_WIDTH = 100  # characters of a table
_HEIGHT = 720  # px of the frame that a notebook shows


@dataclass(frozen=True)
class Page:
    """A report, or several side by side: a page in a notebook, tables as text.

    Attributes:
        content: What it shows.
    """

    content: Report | Comparison

    @classmethod
    def of(cls, reports: Sequence[tuple[str, Report]]) -> Page:
        """The page of one report, or of several by their names."""
        return cls(reports[0][1] if len(reports) == 1 else compare(reports))

    @property
    def html(self) -> str:
        """One page that needs nothing else."""
        if isinstance(self.content, Report):
            return render_html(self.content)
        return render_comparison(self.content)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, atomically.

        Raises:
            AdaptifyError: The file cannot be written.
        """
        write_text(path, self.html)
        return Path(path)

    def _repr_html_(self) -> str:
        # In a frame of its own: neither its styles nor the notebook's reach the other.
        page = html.escape(self.html, quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:{_HEIGHT}px;border:0"></iframe>'

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        console = Console(file=text, width=_WIDTH, highlight=False, markup=False, emoji=False)
        for table in self._tables():
            console.print(table)
        return text.getvalue().strip("\n")

    def _tables(self) -> Sequence[RenderableType]:
        from rich.text import Text

        from adaptify.reports.tables import report_tables
        from adaptify.reports.tables.comparison import comparison_tables

        if isinstance(self.content, Report):
            return report_tables(self.content, layers=False)
        return [part for table in comparison_tables(self.content) for part in (Text(), table)]
