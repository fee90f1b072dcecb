"""Tables in Markdown that appear row by row."""

from __future__ import annotations

from collections.abc import Iterable


def print_row(cells: Iterable[object]) -> None:
    """Print one row."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def print_head(title: str, columns: Iterable[str]) -> None:
    """Print a title, and the head of a table; the first column holds words, the others numbers."""
    names = list(columns)
    print(f"\n{title}\n")
    print_row(names)
    print_row(["---", *("---:" for _ in names[1:])])
