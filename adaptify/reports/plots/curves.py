"""Accuracy against compute on the test samples: of one network with exits, and of several runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from adaptify.reports.compare import Run
from adaptify.reports.curves import Place, anytime, budgeted, came, chosen, worth_drawing
from adaptify.reports.plots.axes import Axes, floor_of_interest, square
from adaptify.reports.schema import Report
from adaptify.reports.svg import Svg
from adaptify.text import percent, quantity

_MOST_DOTS = 80  # more of them hide the curve


def anytime_figure(report: Report, width: float, height: float = 300) -> Markup:
    """Draw what each exit gives for all samples, and what the policies of the frontier give.

    Args:
        report: A report of a network with exits, whose accuracy was measured.
        width: Width of the figure.
        height: Height of the figure.
    """
    base = report.before.macs
    exits, curve = _parts(base, anytime(report)), _parts(base, budgeted(report))
    now, before = (report.after.kept, report.accuracies[1]), (1.0, report.accuracies[0])
    axes = _axes(
        f"Accuracy against MACs on the test samples: {len(exits)} exits, {len(curve)} policies",
        [*exits, *curve, now, *([before] if draws_backbone(report) else [])],
        width,
        height,
    )
    svg = axes.svg
    axes.grid("of the MACs", "accuracy")
    if draws_backbone(report):
        _backbone(axes, before, percent)
    svg.polyline([_at(axes, place) for place in exits], "series s1")
    svg.polyline([_at(axes, place) for place in curve], "curve")
    if len(curve) <= _MOST_DOTS:
        for place in curve:
            svg.circle(*_at(axes, place), 2.4, "point", _told(place, percent))
    for index, (exit_, place) in enumerate(zip(report.exits, exits, strict=True)):
        told = f"all samples leave at {exit_.name}: {_told(place, percent)}"
        svg.circle(*_at(axes, place), 5, f"peak x{index}", told)
    x, y = _at(axes, now)
    svg.circle(x, y, 10, "halo")
    svg.circle(x, y, 5, "chosen", f"chosen: {_told(now, percent)}")
    axes.label(x, y, f"{percent(now[0])}, {percent(now[1], 2)}")
    return svg.markup()


def draws_backbone(report: Report) -> bool:
    """Whether the network as it came is on the figure of a report."""
    before, now = came(report), chosen(report)
    assert before is not None
    assert now is not None
    return worth_drawing(before, [*anytime(report), *budgeted(report), now])


def comparison_figure(runs: Sequence[Run], width: float, height: float = 380) -> Markup:
    """Draw the curves of several runs, their exits, and their choices with the number of the run.

    Args:
        runs: The runs; those that were not measured are left out, one at least was.
        width: Width of the figure.
        height: Height of the figure.
    """
    shown = [(index, run) for index, run in enumerate(runs) if run.report.measured]
    floor = comparison_floor(runs)
    places = [place for _, run in shown for place in _above(floor, _places(run.report))]
    backbones = comparison_backbones(runs)
    axes = _axes(
        f"Accuracy against MACs on the test samples: {len(shown)} runs", [*places, *backbones], width, height
    )
    svg = axes.svg
    axes.grid("MACs per sample", "accuracy", _quantities)
    for place in backbones:
        _backbone(axes, place)
    for index, run in reversed(shown):
        curve = _above(floor, budgeted(run.report))
        if len(run.report.exits) > 1:
            exits = _above(floor, anytime(run.report))
            svg.polyline([_at(axes, place) for place in exits], f"faint s{index}")
            for place in exits:
                told = f"{run.name}, one exit for all: {_told(place)}"
                svg.circle(*_at(axes, place), 3.5, f"hollow s{index}", told)
        svg.polyline([_at(axes, place) for place in curve], f"series s{index}")
        if len(curve) <= _MOST_DOTS:
            for place in curve:
                svg.circle(*_at(axes, place), 2.2, f"bar s{index}", f"{run.name}: {_told(place)}")
    for index, run in reversed(shown):
        now = chosen(run.report)
        assert now is not None
        x, y = _at(axes, now)
        svg.circle(x, y, 9, f"peak s{index}", f"{run.name}, chosen: {_told(now)}")
        svg.text(x, y + 4, str(run.number), "number", "middle")
    return svg.markup()


def comparison_floor(runs: Sequence[Run]) -> float:
    """Return the accuracy below which a figure of several runs shows nothing.

    Thresholds that nobody would choose would press what was chosen into a corner.
    """
    measured = [run.report for run in runs if run.report.measured]
    best = max(accuracy for report in measured for _, accuracy in _places(report))
    return floor_of_interest(best, min(report.accuracies[1] for report in measured))


def hidden_places(runs: Sequence[Run]) -> int:
    """Return how many thresholds and exits are below the figure of several runs."""
    floor = comparison_floor(runs)
    return sum(accuracy < floor for run in runs if run.report.measured for _, accuracy in _places(run.report))


def comparison_backbones(runs: Sequence[Run]) -> list[Place]:
    """Return the networks as they came that are on the figure of several runs, each once."""
    measured = [run.report for run in runs if run.report.measured]
    places = [place for report in measured for place in _places(report)]
    found = {place for report in measured if (place := came(report)) is not None}
    return [place for place in sorted(found) if worth_drawing(place, places)]


def _places(report: Report) -> list[Place]:
    now = chosen(report)
    exits = anytime(report) if len(report.exits) > 1 else []
    return [*budgeted(report), *exits, *([now] if now is not None else [])]


def _above(floor: float, places: Sequence[Place]) -> list[Place]:
    return [place for place in places if place[1] >= floor]


def _axes(label: str, places: list[Place], width: float, height: float) -> Axes:
    """An area that all places fit into."""
    xs, ys = [x for x, _ in places], [y for _, y in places]
    across, room = max(xs) - min(xs) or max(xs), 0.12 * max(max(ys) - min(ys), 0.004)
    return Axes(
        Svg(width, height, label),
        x=(max(0.0, min(xs) - 0.06 * across), max(xs) + 0.04 * across),
        y=(max(0.0, min(ys) - room), min(1.0, max(ys) + room)),
    )


def _parts(base: float, places: Sequence[Place]) -> list[Place]:
    """Places with their MACs as parts of `base`."""
    return [(macs / base, accuracy) for macs, accuracy in places]


def _at(axes: Axes, place: Place) -> tuple[float, float]:
    return axes.x(place[0]), axes.y(place[1])


def _backbone(axes: Axes, place: Place, write: Callable[[float], str] = quantity) -> None:
    axes.svg.line(axes.left, axes.y(place[1]), axes.right, axes.y(place[1]), "baseline")
    square(axes.svg, *_at(axes, place), "came", f"as it came: {_told(place, write)}")


def _told(place: Place, write: Callable[[float], str] = quantity) -> str:
    return f"{write(place[0])}{' of the' if write is percent else ''} MACs, accuracy {percent(place[1], 2)}"


def _quantities(values: Sequence[float]) -> list[str]:
    return [quantity(value) for value in values]
