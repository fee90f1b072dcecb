"""The report's tables as Markdown, for a pull request or a wiki."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$])")


def render_markdown(tables: Sequence[RenderableType]) -> str:
    """Return tables of `adaptify.reports.tables` as GitHub-flavoured Markdown.

    A title becomes a heading, what stands below a table a paragraph. Names from a model or a data set are
    escaped: they may hold anything.
    """
    blocks = [block for table in tables for block in _blocks([table])]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _blocks(parts: Iterable[RenderableType]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, Group):
            yield from _blocks(part.renderables)
        elif isinstance(part, Table):
            yield _table(part)
        elif isinstance(part, Text):
            written = _escaped(part.plain)
            yield f"## {written}" if part.style == "bold" else written


def _table(table: Table) -> str:
    """A table; its columns of numbers are flush right."""
    marks = ["---:" if column.justify == "right" else "---" for column in table.columns]
    head = [_cell(column.header) for column in table.columns]
    body = zip(*([_cell(cell) for cell in column.cells] for column in table.columns), strict=True)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, marks, *body])


def _cell(cell: RenderableType) -> str:
    return _escaped(cell.plain if isinstance(cell, Text) else str(cell))


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
