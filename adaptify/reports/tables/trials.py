"""The trials of a search: what each was chosen by, and what it came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType

from adaptify.reports.curves import Place, chosen
from adaptify.reports.schema import Report
from adaptify.reports.tables.parts import new_table, one_line, titled, whole_name
from adaptify.text import percent, quantity


def trials_tables(
    reports: Sequence[tuple[str, Report]],
    judged: Mapping[str, Place],
    settings: Mapping[str, Mapping[str, Any]],
) -> list[RenderableType]:
    """Return the trials with their figures on held-out and on test images, and what was chosen for each.

    Args:
        reports: Name and report of each.
        judged: Name -> MACs and accuracy on held-out images.
        settings: Name -> dotted key -> value.
    """
    table = new_table(["run", "held-out", "MACs", "test", "MACs", "kept"], left=1)
    lines: list[RenderableType] = []
    for name, report in reports:
        macs, accuracy = judged[name]
        place = chosen(report)
        table.add_row(
            whole_name(name),
            percent(accuracy, 2),
            quantity(macs),
            "-" if place is None else percent(place[1], 2),
            quantity(report.after.macs),
            percent(report.after.kept),
        )
        told = ", ".join(f"{key}={value}" for key, value in settings[name].items())
        lines.append(one_line(f"{name}: {told}", "dim"))
    return [titled(f"{len(reports)} trials (accuracy and MACs: held-out and test samples)", table), *lines]
