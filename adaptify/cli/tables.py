"""Tables that commands show beside those of a report; they fit into 80 columns.

Imported by a command when it has something to show. Names go in as `Text`: they may hold anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from adaptify.pipeline.evaluate import Result
from adaptify.reports.derive import target
from adaptify.reports.schema import Report
from adaptify.text import percent, points, printable, quantity, whole


def table(columns: Sequence[str], left: int = 1) -> Table:
    """Return an empty table whose first `left` columns hold words, the others numbers.

    Where there is no room for all, the words are cut off and the numbers are not.
    """
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(columns))
    for index, column in enumerate(columns):
        words = index < left
        made.add_column(word(column, "dim"), justify="left" if words else "right", no_wrap=not words)
    return made


def word(text: str, style: str = "") -> Text:
    """Return a name for a table, in one line: whatever it holds is shown, and not obeyed."""
    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")


def titled(title: str, body: Table) -> tuple[RenderableType, ...]:
    """Return what to show for a table with a title."""
    return Text(printable(title), style="bold"), body


def exits_planned(rows: Sequence[dict[str, Any]], total: int, whole_way: int) -> Table:
    """Return the exits of a dry run, and a last row for samples that go the whole way (MACs, of `total`)."""
    shown = table(["exit", "channels", "MACs of gate", "MACs to leave", "of full"])
    for row in rows:
        shown.add_row(
            word(row["name"]),
            whole(row["channels"]),
            quantity(row["gate_macs"]),
            quantity(row["macs"]),
            percent(row["macs"] / total),
        )
    shown.add_row("output", "", "", quantity(whole_way), percent(whole_way / total))
    return shown


def gates_planned(rows: Sequence[dict[str, Any]], total: int) -> Table:
    """Return the gates of a dry run, and the MACs that are left where all gates of a site are closed."""
    shown = table(["site", "position", "channels", "gates", "closed"], left=2)
    for row in rows:
        shown.add_row(
            word(row["name"]),
            word(row["position"]),
            whole(row["channels"]),
            whole(row["gates"]),
            percent(row["macs_closed"] / total),
        )
    return shown


def changes(before: Report, now: Report) -> tuple[RenderableType, ...]:
    """Return what another choice of thresholds changed, on the test samples."""
    base = before.accuracies[0]
    shown = table(["", "original", "before", "now"])
    both = (before, now)
    accuracies = [report.accuracies[1] for report in both]
    shown.add_row("Accuracy", percent(base, 2), *(percent(value, 2) for value in accuracies))
    shown.add_row("  points", "", *(points(value - base) for value in accuracies))
    macs = [report.after.macs for report in both]
    shown.add_row("MACs per sample", quantity(before.before.macs), *(quantity(value) for value in macs))
    shown.add_row("  kept", "", *(percent(report.after.kept) for report in both))
    for exits in zip(before.exits[:-1], now.exits[:-1], strict=True):
        shown.add_row(word(f"Threshold at {exits[0].name}"), "", *(_limit(item.threshold) for item in exits))
        shown.add_row("  leave there", "", *(percent(item.share) for item in exits))
    gates = [report.gating for report in both if report.gating]
    if gates:
        shown.add_row("Threshold of gates", "", *(_tau(item.tau) for item in gates))
        shown.add_row("  open", "", *(percent(item.open) for item in gates))
    made = target(now)
    if made is None:
        return (shown,)
    lines = [f"asked: {made.request}; held-out samples: {made.achieved}"]
    if made.promise is not None:
        lines.append(f"promised: {made.promise}")
    return shown, Text("\n".join(lines), style="dim")


def evaluation(result: Result) -> tuple[RenderableType, ...]:
    """Return what a network did on test samples, and where they left."""
    figures = table(["", ""])
    figures.add_row("Accuracy", percent(result.accuracy, 2))
    figures.add_row("MACs per sample", quantity(result.macs))
    figures.add_row("  kept", f"{percent(result.macs / result.base_macs)} of {quantity(result.base_macs)}")
    if result.seconds:
        figures.add_row("Images per second", whole(round(result.samples / result.seconds)))
    title = f"{result.target} on {result.data} ({whole(result.samples)} test samples)"
    parts = titled(title, figures)
    if len(result.exits) > 1:
        parts = *parts, "", *_exits(result)
    return (*parts, "", *_budgets(result)) if result.budgets else parts


def _exits(result: Result) -> tuple[RenderableType, ...]:
    rows = table(["exit", "leave", "samples", "MACs", "of full", "accuracy"])
    for item in result.exits:
        rows.add_row(
            word(item.name),
            percent(item.share),
            whole(item.samples),
            quantity(item.macs),
            percent(item.macs / result.base_macs),
            "-" if item.accuracy is None else percent(item.accuracy, 2),
        )
    return titled("Exits (accuracy: of the samples that leave there)", rows)


def _budgets(result: Result) -> tuple[RenderableType, ...]:
    rows = table(["budget", "policy", "kept", "MACs", "accuracy", "images/s"], left=2)
    for item in result.budgets:
        rows.add_row(
            quantity(item.asked) if item.absolute else percent(item.asked),
            word(_policy(item.policy)),
            percent(item.kept),
            quantity(item.macs),
            percent(item.accuracy, 2),
            whole(round(result.samples / item.seconds)) if item.seconds else "-",
        )
    return titled("Budgets (policies chosen on held-out samples)", rows)


def _policy(policy: Mapping[str, Any]) -> str:
    if "tau" in policy:
        return f"tau {_tau(policy['tau'])}"
    return ", ".join(_limit(threshold) for threshold in policy["thresholds"])


def _tau(tau: float) -> str:
    # A threshold just below 1 is not 1, which would close everything.
    return f"{tau:.3g}" if tau <= 0.999 or tau == 1 else f"{tau:.12g}"


def _limit(threshold: float | None) -> str:
    return "never" if threshold is None else f"{threshold:.3g}"
