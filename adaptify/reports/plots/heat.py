"""Heat maps: rows of shares, darker where they are higher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from adaptify.reports.plots.axes import CHARACTER, Axes, shortened

HEAT_LEVELS = 20
BELOW_MAP = 24  # px, for the names of the ends of the columns
ABOVE_MAP = 6
_LINE = 12  # px that a name takes
_OVERLAP = 0.5  # px


def names_width(names: Sequence[str], width: float) -> float:
    """Return the room left of a map of this width (px) for the names of its rows."""
    return min(max(len(name) for name in names) * CHARACTER + 10, width * 0.34)


def row_height(rows: int, height: float) -> float:
    """Return the height of a row (px) where about `height` is there for all."""
    return max(3.0, min(18.0, height / rows))


def rows_for_one_name(tall: float) -> int:
    """Return how many rows of this height share one name, so that names do not overlap."""
    return math.ceil(_LINE / tall)


def draw_row(axes: Axes, y: float, tall: float, name: str, values: Sequence[float], told: str) -> None:
    """Draw one row.

    Args:
        axes: The plotting area; its x axis counts columns.
        y: Upper end of the row.
        tall: Height of the row.
        name: Written left of it; may be empty.
        values: Shares in [0, 1], one a column.
        told: What is shown to who points at it.
    """
    start = 0
    for level, run in groupby(round(value * HEAT_LEVELS) for value in values):
        at = axes.x(start)
        start += len(list(run))
        # A little too wide: what comes next is drawn over it, and no seam shows.
        end = min(axes.x(start) + _OVERLAP, axes.right)
        axes.svg.rect(at, y, end - at, tall - (1 if tall > 5 else 0), f"heat h{level}")
    axes.svg.rect(axes.left, y, axes.right - axes.left, tall, "touch", told)
    if name:
        axes.svg.text(axes.left - 6, y + tall / 2 + 3.5, shortened(name, axes.left - 10), "tick", "end")
