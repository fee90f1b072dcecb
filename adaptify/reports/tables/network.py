"""Tables of the network: before and after, layer by layer, and what was pruned."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from adaptify.reports.derive import headline, target
from adaptify.reports.learned import training_line
from adaptify.reports.schema import Pruning, Report, Speed
from adaptify.reports.tables.parts import new_table, one_line, titled
from adaptify.text import milliseconds, percent, quantity, shape, whole


def headline_table(report: Report) -> RenderableType:
    """Return accuracy, MACs, FLOPs and parameters before and after, and what came of the request."""
    data = report.data
    on = f", {data.name} ({whole(data.test)} test samples)" if data else ""
    title = f"{report.model.architecture}, {report.method.name}{on}"
    table = new_table(["", "before", "after", "change"], left=1)
    for row in headline(report):
        table.add_row(*row)
    lines = []
    if len(report.exits) > 1 or (report.gating is not None and report.gating.data_dependent):
        spent = report.macs_per_sample
        figures = (("mean", spent.mean), ("median", spent.median), ("p95", spent.p95))
        told = ", ".join(f"{name} {quantity(value)}" for name, value in figures)
        lines.append(Text(f"MACs per sample: {told}", style="dim"))
    if report.training is not None:
        lines.append(Text(training_line(report.training), style="dim"))
    asked = target(report)
    calibration = report.calibration
    if asked is not None and calibration is not None:
        word, style = {True: ("met", "green"), False: ("missed", "red"), None: ("", "")}[asked.met]
        line = Text(f"asked: {asked.request}; {calibration.split}: {asked.achieved}; test: {asked.test}")
        lines.append(line.append(f"; {word} on test", style) if word else line)
        if asked.promise is not None:
            lines.append(Text(f"promised: {asked.promise}"))
    return Group(titled(title, table), *lines)


def speed_table(speed: Speed) -> RenderableType:
    """Return how long both networks take, by batch size."""
    table = new_table(["batch", "images", "before", "after", "time left", "rounds", "MACs left"])
    for row in speed.batches:
        table.add_row(
            whole(row.batch_size),
            whole(row.images),
            milliseconds(row.before),
            milliseconds(row.after),
            percent(row.ratio),
            f"{percent(row.low, 0)} to {percent(row.high, 0)}",
            percent(row.kept),
        )
    threads = f", {speed.threads} thread{'s' if speed.threads > 1 else ''}" if speed.device == "cpu" else ""
    images = f"test images of {speed.data}" if speed.data else "random values"
    told = [f"{speed.machine}{threads}, {images}; the fastest of {speed.rounds} rounds, in turns"]
    if not all(row.steady for row in speed.batches):
        told.append("the rounds do not agree: the machine was busy; --time measures again")
    return Group(titled("Time", table), *(Text(line, style="dim") for line in told))


def pruning_table(pruning: Pruning) -> RenderableType:
    """Return how many channels each layer keeps, and what was asked for."""
    table = new_table(["layer", "channels", "", "MACs before", "after", "kept"], left=1)
    for layer in pruning.layers:
        table.add_row(
            one_line(layer.name),
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
        lines.append(one_line(f"not touched: {', '.join(groups)} ({reason})", "dim"))
    return Group(titled("Pruning (channels that each layer writes)", table), *lines)


def layers_table(report: Report) -> RenderableType:
    """Return each layer with its cost and the part of the samples that runs it."""
    table = new_table(["layer", "type", "output", "params", "MACs", "run by", "kept"], left=2)
    for layer in report.layers:
        table.add_row(
            one_line(layer.name),
            one_line(layer.type),
            shape(layer.shape),
            quantity(layer.parameters),
            quantity(layer.macs),
            percent(layer.executed),
            quantity(layer.macs_kept),
        )
    return titled("Layers", table)
