"""The report as tables for the terminal."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from adaptify.reports.derive import payers
from adaptify.reports.schema import Report
from adaptify.reports.tables.exits import classes_table, exits_table, frontier_table, payers_table
from adaptify.reports.tables.gating import class_uses_table, gating_table
from adaptify.reports.tables.network import headline_table, layers_table, pruning_table, speed_table
from adaptify.reports.tables.stages import stages_table

__all__ = ["exits_table", "gating_table", "headline_table", "pruning_table", "report_tables", "stages_table"]


def report_tables(report: Report, *, layers: bool = True) -> list[RenderableType]:
    """Return all tables of a report, the headline last: it is what a terminal shows at its bottom.

    Args:
        report: The report.
        layers: Whether the table of layers is among them.
    """
    tables: list[RenderableType] = []
    if layers and report.layers:
        tables.append(layers_table(report))
    if len(report.exits) > 1:
        if report.frontier:
            tables.append(frontier_table(report))
        if report.classes_per_exit:
            tables.append(classes_table(report))
        tables.append(exits_table(report))
    if report.pruning is not None:
        tables.append(pruning_table(report.pruning))
    if report.gating is not None:
        if report.gating.samples is not None and report.gating.samples.classes:
            tables.append(class_uses_table(report.gating.samples.classes))
        tables.append(gating_table(report, report.gating))
    paid = payers(report)
    if paid is not None:
        tables.append(payers_table(paid))
    if report.speed is not None:
        tables.append(speed_table(report.speed))
    tables.append(headline_table(report))
    if report.stages:
        tables.append(stages_table(report.stages))
    return [part for table in tables for part in (Text(), table)]
