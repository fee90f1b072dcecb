"""The report as tables for the terminal; they fit into 80 columns.

Names from a model or a data set are put in as `Text`, never as markup: they may hold anything.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from adaptify.report.derive import chosen_point, class_rows, headline, spread, target
from adaptify.report.schema import Pruning, Report
from adaptify.text import percent, points, printable, quantity, shape, whole

_MOST_POINTS = 12  # of the frontier
_MOST_CLASSES = 12


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
    tables.append(headline_table(report))
    return [part for table in tables for part in (Text(), table)]


def headline_table(report: Report) -> RenderableType:
    """Return accuracy, MACs, FLOPs and parameters before and after, and what came of the request."""
    data = report.data
    on = f", {data.name} ({whole(data.test)} test samples)" if data else ""
    title = f"{report.model.architecture}, {report.method.name}{on}"
    table = _table(["", "before", "after", "change"], left=1)
    for row in headline(report):
        table.add_row(*row)
    lines = []
    if len(report.exits) > 1:
        spent = report.macs_per_sample
        figures = (("mean", spent.mean), ("median", spent.median), ("p95", spent.p95))
        told = ", ".join(f"{name} {quantity(value)}" for name, value in figures)
        lines.append(Text(f"MACs per sample: {told}", style="dim"))
    asked = target(report)
    calibration = report.calibration
    if asked is not None and calibration is not None:
        word, style = {True: ("met", "green"), False: ("missed", "red"), None: ("", "")}[asked.met]
        line = Text(f"asked: {asked.request}; {calibration.split}: {asked.achieved}; test: {asked.test}")
        lines.append(line.append(f"; {word} on test", style) if word else line)
    return Group(_titled(title, table), *lines)


def pruning_table(pruning: Pruning) -> RenderableType:
    """Return how many channels each layer keeps, and what was asked for."""
    table = _table(["layer", "channels", "", "MACs before", "after", "kept"], left=1)
    for layer in pruning.layers:
        table.add_row(
            _name(layer.name),
            f"{layer.channels_after} of {layer.channels_before}",
            "" if layer.channels_after else "gone",
            quantity(layer.macs_before),
            quantity(layer.macs_after),
            percent(layer.macs_after / layer.macs_before) if layer.macs_before else "-",
        )
    lines = [
        Text(
            f"asked: {percent(pruning.target)} of the MACs; kept: {percent(pruning.achieved, 2)}, "
            f"by {pruning.importance}, in multiples of {pruning.round_to} where layers are large enough"
        )
    ]
    for reason, groups in pruning.frozen.items():
        lines.append(_name(f"not touched: {', '.join(groups)} ({reason})", "dim"))
    return Group(_titled("Pruning (channels that each layer writes)", table), *lines)


def exits_table(report: Report) -> RenderableType:
    """Return where samples leave, at which cost, and how right each exit is."""
    table = _table(
        ["exit", "leave", "MACs", "of full", "threshold", "acc. all", "acc. left"],
        left=1,
    )
    for exit_ in report.exits:
        last = exit_ is report.exits[-1]
        table.add_row(
            _name(exit_.name),
            percent(exit_.share),
            quantity(exit_.macs),
            percent(exit_.share_macs),
            "-" if last else "never" if exit_.threshold is None else f"{exit_.threshold:.3g}",
            percent(exit_.accuracy_all, 2),
            "-" if exit_.accuracy_left is None else percent(exit_.accuracy_left, 2),
        )
    return _titled("Exits (test samples; acc. left: of those that leave there)", table)


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
    table = _table(["MACs kept", "MACs", "accuracy", "points", "leave early", ""])
    for point in shown:
        table.add_row(
            percent(point.macs / report.before.macs),
            quantity(point.macs),
            percent(point.accuracy, 2),
            points(point.accuracy - base),
            percent(sum(point.exit_shares[:-1])),
            "<- chosen" if point is chosen else "",
            style="bold" if point is chosen else "",
        )
    return _titled(f"Frontier ({some}{on})", table)


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
    table = _table(["class", *columns, "MACs kept"], left=1)
    for column in table.columns[1:-1]:
        column.max_width = max(60 // len(columns) - 2, 6)
    for place, index in enumerate(shown):
        if place and index != shown[place - 1] + 1:
            table.add_row(
                Text(f"{whole(len(rows) - len(shown))} more classes", style="dim"), *[""] * (len(columns) + 1)
            )
        row = rows[index]
        shares: Iterable[float] = row.shares if wide else (sum(row.shares[:-1]),)
        table.add_row(_name(row.name), *(percent(share, 0) for share in shares), percent(row.kept))
    return _titled("Classes (share of each class that leaves at an exit)", table)


def layers_table(report: Report) -> RenderableType:
    """Return each layer with its cost and the part of the samples that runs it."""
    table = _table(["layer", "type", "output", "params", "MACs", "run by", "kept"], left=2)
    for layer in report.layers:
        table.add_row(
            _name(layer.name),
            _name(layer.type),
            shape(layer.shape),
            quantity(layer.parameters),
            quantity(layer.macs),
            percent(layer.executed),
            quantity(layer.macs * layer.executed),
        )
    return _titled("Layers", table)


def _table(columns: list[str], left: int = 0) -> Table:
    """Return an empty table whose first `left` columns hold words, the others numbers.

    Where there is no room for all, the words are cut off and the numbers are not.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        words = index < left
        table.add_column(_name(column, "dim"), justify="left" if words else "right", no_wrap=not words)
    return table


def _titled(title: str, table: Table) -> RenderableType:
    return Group(Text(printable(title), style="bold"), table)


def _name(name: str, style: str = "") -> Text:
    return Text(printable(name), style=style, no_wrap=True, overflow="ellipsis")
