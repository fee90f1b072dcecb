"""Which of many operating points no other one beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType

from adaptify.reports.curves import budgeted, came, chosen
from adaptify.reports.schema import Report
from adaptify.reports.tables.parts import new_table, one_line, titled
from adaptify.text import percent, points, quantity


@dataclass(frozen=True)
class FrontPoint:
    """An operating point that no cheaper one is as accurate as, on the test samples.

    Attributes:
        run: The run that has it; empty: the network as it came.
        macs: Mean MACs of a sample.
        accuracy: Top-1, in [0, 1].
        chosen: Whether it is what the run was written with; else it is a point of its frontier.
    """

    run: str
    macs: float
    accuracy: float
    chosen: bool

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"run": self.run, "macs": self.macs, "accuracy": self.accuracy, "chosen": self.chosen}


def pareto_front(reports: Sequence[tuple[str, Report]]) -> list[FrontPoint]:
    """Return the points that no other one beats in both, the cheapest first, of what was measured."""
    found: list[FrontPoint] = []
    for name, report in reports:
        for place in (place for place in [came(report)] if place is not None):
            found.append(FrontPoint("", *place, chosen=True))
        for place in (place for place in [chosen(report)] if place is not None):
            found.append(FrontPoint(name, *place, chosen=True))
        found += [FrontPoint(name, *place, chosen=False) for place in budgeted(report)]
    front: list[FrontPoint] = []
    # Of equal ones, the first that was named, and what was written before what could be.
    for point in sorted(found, key=lambda item: (item.macs, -item.accuracy, not item.chosen)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def pareto_table(
    front: Sequence[FrontPoint],
    base: tuple[float, float] | None,
    title: str = "What nothing else beats (test samples)",
) -> RenderableType:
    """Return them as a table.

    Args:
        front: The points.
        base: MACs and accuracy of the network as it came, if they are known.
        title: What stands above it.
    """
    table = new_table(["run", "MACs", "kept", "accuracy", "change", ""], left=1)
    for point in front:
        table.add_row(
            one_line(point.run or "as it came"),
            quantity(point.macs),
            percent(point.macs / base[0]) if base else "-",
            percent(point.accuracy, 2),
            f"{points(point.accuracy - base[1])} points" if base else "-",
            "" if point.chosen else "by --budget",
        )
    return titled(title, table)
