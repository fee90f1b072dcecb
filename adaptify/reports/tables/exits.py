"""Tables of early exits: where samples leave, what other thresholds give, which classes are easy."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.text import Text

from adaptify.reports.derive import Payers, chosen_point, class_rows, spread
from adaptify.reports.schema import Report
from adaptify.reports.tables.parts import new_table, one_line, titled
from adaptify.text import percent, points, quantity, whole

_MOST_POINTS = 12  # of the frontier
_MOST_CLASSES = 12
_MOST_PAYERS = 8


def exits_table(report: Report) -> RenderableType:
    """Return where samples leave, at which cost, and how right each exit is."""
    table = new_table(
        ["exit", "leave", "MACs", "of full", "threshold", "acc. all", "acc. left"],
        left=1,
    )
    for exit_ in report.exits:
        last = exit_ is report.exits[-1]
        table.add_row(
            one_line(exit_.name),
            percent(exit_.share),
            quantity(exit_.macs),
            percent(exit_.share_macs),
            "-" if last else "never" if exit_.threshold is None else f"{exit_.threshold:.3g}",
            percent(exit_.accuracy_all, 2),
            "-" if exit_.accuracy_left is None else percent(exit_.accuracy_left, 2),
        )
    return titled("Exits (test samples; acc. left: of those that leave there)", table)


def frontier_table(report: Report) -> RenderableType:
    """Return a dozen points of the frontier, with the chosen one marked."""
    calibration = report.calibration
    base = calibration.base_accuracy if calibration else report.accuracies[0]
    on = (
        f"{calibration.split}, {whole(calibration.samples)} samples" if calibration else "calibration samples"
    )
    chosen = chosen_point(report)
    shown = spread(report.frontier, _MOST_POINTS, chosen)
    some = (
        f"{len(shown)} of {whole(len(report.frontier))} points; " if len(shown) < len(report.frontier) else ""
    )
    test = {id(point): found for point, found in zip(report.frontier, report.budgeted, strict=False)}
    table = new_table(
        ["MACs kept", "MACs", "accuracy", "points", "leave early", *(["on test"] if test else []), ""]
    )
    for point in shown:
        table.add_row(
            percent(point.macs / report.before.macs),
            quantity(point.macs),
            percent(point.accuracy, 2),
            points(point.accuracy - base),
            percent(sum(point.exit_shares[:-1])),
            *([percent(test[id(point)].accuracy, 2)] if test else []),
            "<- chosen" if point is chosen else "",
            style="bold" if point is chosen else "",
        )
    return titled(f"Frontier ({some}{on})", table)


def payers_table(paid: Payers) -> RenderableType:
    """Return the classes whose accuracy the savings cost most, and, last, those that gained."""
    table = new_table(["class", "images", "before", "after", "points"], left=1)
    rows = paid.rows
    shown = rows if len(rows) <= _MOST_PAYERS + 2 else (*rows[:_MOST_PAYERS], *rows[-2:])
    for place, row in enumerate(shown):
        if len(shown) < len(rows) and place == _MOST_PAYERS:
            between = Text(f"{whole(len(rows) - len(shown))} more classes", style="dim")
            table.add_row(between, "", "", "", "")
        change = points(row.after - row.before, 1)
        table.add_row(one_line(row.name), whole(row.samples), percent(row.before), percent(row.after), change)
    words = f"{whole(paid.lose)} of {whole(len(rows))} classes lose, {whole(paid.gain)} gain"
    image = f"{100 * paid.one_image:.2g} points"
    return Group(
        titled("Who pays (accuracy of each class on the test samples)", table),
        Text(f"{words}; in a class of median size, one image is {image}", style="dim"),
    )


def classes_table(report: Report) -> RenderableType:
    """Return where the samples of each class leave, the classes that need the least compute first."""
    rows = class_rows(report)
    names = [exit_.name for exit_ in report.exits]
    shown: list[int] = list(range(len(rows)))
    if len(rows) > _MOST_CLASSES:
        half = _MOST_CLASSES // 2
        shown = [*shown[:half], *shown[-half:]]
    # Six exits fit beside the class's name; of more, the share that leaves early says it.
    wide = len(names) <= 6
    columns = names if wide else ["leave early"]
    table = new_table(["class", *columns, "MACs kept"], left=1)
    for column in table.columns[1:-1]:
        column.max_width = max(60 // len(columns) - 2, 6)
    for place, index in enumerate(shown):
        if place and index != shown[place - 1] + 1:
            table.add_row(
                Text(f"{whole(len(rows) - len(shown))} more classes", style="dim"), *[""] * (len(columns) + 1)
            )
        row = rows[index]
        shares: Iterable[float] = row.shares if wide else (sum(row.shares[:-1]),)
        table.add_row(one_line(row.name), *(percent(share, 0) for share in shares), percent(row.kept))
    return titled("Classes (share of each class that leaves at an exit)", table)
