"""What each stage of a recipe with several did, as a waterfall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import RenderableType

from adaptify.reports.schema import Stage
from adaptify.reports.tables.parts import new_table, one_line, titled
from adaptify.text import percent, points, quantity


@dataclass(frozen=True)
class StageRow:
    """One step of the waterfall, in words.

    Attributes:
        name: The stage.
        accuracy: After it.
        change: In points, by it.
        macs: After it.
        kept: The part of the MACs that it was given.
        of_all: The part of those of the first network.
    """

    name: str
    accuracy: str
    change: str
    macs: str
    kept: str
    of_all: str


def stage_rows(stages: Sequence[Stage]) -> list[StageRow]:
    """Return the network as it came, each stage, and all of them together."""
    came, last = stages[0].before, stages[-1].after
    base = came.macs
    rows = [StageRow("as it came", _accuracy(came.accuracy), "", quantity(base), "", percent(1.0))]
    for number, stage in enumerate(stages, 1):
        after = stage.after
        rows.append(
            StageRow(
                f"{number}. {stage.name}",
                _accuracy(after.accuracy),
                _change(stage.before.accuracy, after.accuracy),
                quantity(after.macs),
                percent(after.kept),
                percent(after.macs / base),
            )
        )
    together = percent(last.macs / base)
    change = _change(came.accuracy, last.accuracy)
    rows.append(
        StageRow("together", _accuracy(last.accuracy), change, quantity(last.macs), together, together)
    )
    return rows


def stages_table(stages: Sequence[Stage]) -> RenderableType:
    """Return the same as a table."""
    table = new_table(["stage", "accuracy", "change", "MACs", "kept", "of all"], left=1)
    for row in stage_rows(stages):
        table.add_row(one_line(row.name), row.accuracy, row.change, row.macs, row.kept, row.of_all)
    return titled("Stages (on the test samples)", table)


def _accuracy(value: float | None) -> str:
    return "-" if value is None else percent(value, 2)


def _change(before: float | None, after: float | None) -> str:
    return "-" if before is None or after is None else f"{points(after - before)} points"
