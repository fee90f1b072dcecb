"""Tables of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from adaptify.reports.compare import Comparison, best_of
from adaptify.reports.tables.parts import new_table, one_line, titled, whole_name
from adaptify.text import milliseconds, percent, quantity, whole

_ROOM = 70  # columns for all runs beside the MACs
_NARROWEST = 7  # columns of an accuracy


def comparison_tables(comparison: Comparison) -> list[RenderableType]:
    """Return what runs give within a few budgets, and, last, what each came to as it was written."""
    budgets = comparison.budgets
    tables: list[RenderableType] = []
    for title, rows in (
        ("One exit for all images (anytime; accuracy on test samples)", [row.anytime for row in budgets]),
        ("Within a budget, on average (accuracy on test samples)", [row.budgeted for row in budgets]),
    ):
        if any(value is not None for row in rows for value in row):
            tables.append(titled(title, _by_budget(comparison, rows)))
    tables.append(titled(f"{len(comparison.runs)} runs (accuracy and MACs: test samples)", _runs(comparison)))
    lines: list[RenderableType] = []
    for run in comparison.runs:
        if run.settings:
            told = ", ".join(f"{name}={value}" for name, value in run.settings.items())
            lines.append(one_line(f"[{run.number}] {told}", "dim"))
    lines += [Text(f"note: {note}", style="dim") for note in comparison.notes]
    lines += [Text(f"warning: {warning}", style="yellow") for warning in comparison.warnings]
    return [*(part for table in tables for part in (Text(), table)), *lines]


def _by_budget(comparison: Comparison, rows: Sequence[tuple[float | None, ...]]) -> Table:
    table = new_table(["MACs", *(f"[{run.number}] {run.name}" for run in comparison.runs)])
    for column in table.columns[1:]:
        column.max_width = max(_ROOM // len(comparison.runs) - 2, _NARROWEST)
    for budget, values in zip(comparison.budgets, rows, strict=True):
        best = best_of(values)
        cells = (
            Text("-" if value is None else percent(value, 2), style="bold" if value == best else "")
            for value in values
        )
        table.add_row(quantity(budget.macs), *cells)
    return table


def _runs(comparison: Comparison) -> Table:
    clocked = any(run.report.after.milliseconds is not None for run in comparison.runs)
    timed = any(run.images_per_second is not None for run in comparison.runs)
    table = new_table(
        [
            "",
            "run",
            "method",
            "before",
            "after",
            "MACs",
            "kept",
            "params",
            *(["ms"] if clocked else []),
            *(["images/s"] if timed else []),
        ],
        left=3,
    )
    for run in comparison.runs:
        before, after, rate = run.report.before, run.report.after, run.images_per_second
        table.add_row(
            f"[{run.number}]",
            whole_name(run.name),
            one_line(run.report.method.name),
            "-" if before.accuracy is None else percent(before.accuracy, 2),
            "-" if after.accuracy is None else percent(after.accuracy, 2),
            quantity(after.macs),
            percent(after.kept),
            quantity(run.parameters[1]),
            *([_figure(after.milliseconds)] if clocked else []),
            *(["-" if rate is None else whole(round(rate))] if timed else []),
        )
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else milliseconds(value).removesuffix(" ms")
