"""Tables of learned gates: what each way of deciding gives, and what the images of each class take."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from adaptify.reports.learned import gating_line, is_policy
from adaptify.reports.schema import ClassUse, Gating, Report
from adaptify.reports.tables.parts import new_table, one_line, titled
from adaptify.text import percent, points, whole

_MOST_CLASSES = 12


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


def class_uses_table(classes: Sequence[ClassUse]) -> RenderableType:
    """Return what the images of each class take and how many are right, the cheapest classes first."""
    table = new_table(["class", "images", "accuracy", "MACs kept"], left=1)
    half = _MOST_CLASSES // 2
    shown = list(classes) if len(classes) <= _MOST_CLASSES else [*classes[:half], *classes[-half:]]
    for place, row in enumerate(shown):
        if len(shown) < len(classes) and place == half:
            between = f"{whole(len(classes) - len(shown))} more classes"
            table.add_row(Text(between, style="dim"), "", "", "")
        table.add_row(one_line(row.name), whole(row.samples), percent(row.accuracy, 2), percent(row.kept))
    return titled("Classes (what the gates leave open for the images of each)", table)
