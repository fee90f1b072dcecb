"""The table of learned gates: what each way of deciding gives."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from adaptify.report.learned import gating_line, is_policy
from adaptify.report.schema import Gating, Report
from adaptify.report.tables.parts import new_table, one_line, titled
from adaptify.text import percent, points, whole


def gating_table(report: Report, gating: Gating) -> RenderableType:
    """Return accuracy and MACs for each way in which gates can decide, and their state in one sentence."""
    spread = any(mode.accuracy_std is not None for mode in gating.modes)
    drawn = any(mode.runs > 1 for mode in gating.modes)
    base = report.before.accuracy
    table = new_table(
        [
            "gates",
            "tau",
            *(["runs"] if drawn else []),
            "accuracy",
            *(["std"] if spread else []),
            *(["points"] if base is not None else []),
            "MACs kept",
            "",
        ],
        left=1,
    )
    for mode in gating.modes:
        chosen = is_policy(mode, gating)
        table.add_row(
            one_line(mode.name),
            "-" if mode.tau is None else f"{mode.tau:g}",
            *([whole(mode.runs)] if drawn else []),
            percent(mode.accuracy, 2),
            *(["-" if mode.accuracy_std is None else f"{100 * mode.accuracy_std:.2f}"] if spread else []),
            *([points(mode.accuracy - base)] if base is not None else []),
            percent(mode.kept),
            "<- chosen" if chosen else "",
            style="bold" if chosen else "",
        )
    line = Text(gating_line(report, gating), style="dim")
    if not gating.modes:
        return Group(Text("Gates", style="bold"), line)
    return Group(titled("Gates (ways to decide, on the test samples)", table), line)
