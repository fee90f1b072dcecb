"""What the terminal's tables have in common; they fit into 80 columns.

Names from a model or a data set are put in as `Text`, never as markup: they may hold anything.
"""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from adaptify.text import printable


def new_table(columns: list[str], left: int = 0) -> Table:
    """Return an empty table whose first `left` columns hold words, the others numbers.

    Where there is no room for all, the words are cut off and the numbers are not.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        words = index < left
        table.add_column(one_line(column, "dim"), justify="left" if words else "right", no_wrap=not words)
    return table


def titled(title: str, table: Table) -> RenderableType:
    """Return a table below its title."""
    return Group(Text(printable(title), style="bold"), table)


def one_line(text: str, style: str = "") -> Text:
    """Return a name in one line: whatever it holds is shown, and not obeyed."""
    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")


def whole_name(text: str) -> Text:
    """Return a name that goes on in a second line where there is no room: names of runs differ at the end."""
    return Text(printable(text), overflow="fold")
