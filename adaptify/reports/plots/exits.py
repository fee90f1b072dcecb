"""The figures of early exits, and the colours of exits."""

from __future__ import annotations

from markupsafe import Markup

from adaptify.reports.derive import operating_point
from adaptify.reports.plots.axes import Axes, diamond, floor_of_interest, shortened, square
from adaptify.reports.plots.quantiles import BELOW_QUANTILES, mark_quantiles
from adaptify.reports.schema import Report
from adaptify.reports.svg import Svg
from adaptify.text import percent, quantity


def frontier_figure(report: Report, width: float, height: float = 300) -> Markup:
    """Draw accuracy against the MACs kept, on the calibration samples, with the chosen point."""
    calibration = report.calibration
    came, now = report.accuracies
    base = calibration.base_accuracy if calibration else came
    macs = report.before.macs
    at = operating_point(report)
    request = calibration.request if calibration else {}
    lowest = min([base, now] + ([at[1]] if at else []))
    floor = floor_of_interest(base, lowest)
    curve = [(p.macs / macs, p.accuracy) for p in report.frontier if p.accuracy >= floor]
    test = (report.after.kept, now)
    everything = [*curve, (1.0, base), test] + ([at] if at else [])

    low_y, high_y = min(y for _, y in everything), max(y for _, y in everything)
    room = max(high_y - low_y, 0.004) * 0.12
    low_x, high_x = min(x for x, _ in everything), max(x for x, _ in everything)
    if request.get("max_macs") is not None:
        low_x = min(low_x, float(request["max_macs"]))
    axes = Axes(
        Svg(width, height, f"Accuracy against MACs kept: {len(report.frontier)} choices of thresholds"),
        x=(max(0.0, low_x - 0.05), high_x + 0.03),
        y=(low_y - room, min(1.0, high_y + room)),
    )
    svg, x, y = axes.svg, axes.x, axes.y
    if request.get("max_drop") is not None:
        limit = max(base - float(request["max_drop"]) / 100, axes.low_y)
        svg.rect(axes.left, y(base), axes.right - axes.left, y(limit) - y(base), "allowed")
    if request.get("max_macs") is not None:
        limit = min(float(request["max_macs"]), axes.high_x)
        svg.rect(axes.left, axes.top, x(limit) - axes.left, axes.bottom - axes.top, "allowed")
    axes.grid("of the MACs kept", "accuracy")
    svg.line(axes.left, y(base), axes.right, y(base), "baseline")
    svg.polyline([(x(a), y(b)) for a, b in curve], "curve")
    if len(curve) <= 80:
        for a, b in curve:
            svg.circle(x(a), y(b), 2.4, "point", f"{percent(a)} of the MACs, accuracy {percent(b, 2)}")
    square(svg, x(1.0), y(base), "came", f"as it came: accuracy {percent(base, 2)}")
    diamond(svg, x(test[0]), y(test[1]), "test", f"test samples: {percent(test[0])}, {percent(test[1], 2)}")
    if at is not None:
        told = f"{percent(at[0])} of the MACs, accuracy {percent(at[1], 2)}"
        svg.circle(x(at[0]), y(at[1]), 10, "halo")
        svg.circle(x(at[0]), y(at[1]), 5, "chosen", f"chosen: {told}")
        axes.label(x(at[0]), y(at[1]), f"{percent(at[0])} kept, {percent(at[1], 2)}")
    return svg.markup()


def compute_figure(report: Report, width: float, height: float = 300) -> Markup:
    """Draw the share of samples that still run against the MACs spent: its area is the MACs kept."""
    high = max([1.0] + [exit_.share_macs for exit_ in report.exits])
    svg = Svg(width, height, "Share of samples that still run, against the MACs spent on them")
    axes = Axes(svg, x=(0.0, high), y=(0.0, 1.0), bottom=BELOW_QUANTILES)
    x, y = axes.x, axes.y
    corners = [(x(0.0), y(1.0))]
    running = 1.0
    drops = []
    for index, exit_ in enumerate(report.exits):
        left = max(running - exit_.share, 0.0) if index < len(report.exits) - 1 else 0.0
        corners += [(x(exit_.share_macs), y(running)), (x(exit_.share_macs), y(left))]
        drops.append((index, exit_, running, left))
        running = left
    svg.rect(axes.left, axes.top, x(1.0) - axes.left, axes.bottom - axes.top, "saved")
    svg.polygon([*corners, (x(0.0), y(0.0))], "running")
    axes.grid("of the MACs", "samples that still run")
    svg.polyline(corners, "curve")
    mark_quantiles(axes, report.macs_per_sample, report.before.macs)
    for index, exit_, before, after in drops:
        at = x(exit_.share_macs)
        svg.line(at, y(before), at, y(after), f"drop x{index}")
        svg.rect(
            at - 8,
            y(before),
            16,
            y(after) - y(before),
            "touch",
            _exit_title(exit_.name, exit_.share, exit_.macs),
        )
        name = shortened(exit_.name, axes.right - at - 10)
        if y(after) - y(before) >= 16 and name:
            svg.text(at + 7, y(before) + 13, name, "label onto")
    return svg.markup()


def palette(count: int) -> list[tuple[str, str]]:
    """Return a colour (light mode, dark mode) for each of `count` exits, the network's own output last.

    Early exits are green, late ones violet, the output is grey.
    """
    light = ((18, 148, 124), (44, 118, 204), (112, 78, 196))
    dark = ((52, 190, 160), (94, 162, 240), (166, 138, 244))
    steps = [index / max(count - 2, 1) for index in range(count - 1)]
    return [(_between(light, step), _between(dark, step)) for step in steps] + [("#7c8592", "#8a93a1")]


def _exit_title(name: str, share: float, macs: float) -> str:
    return f"{name}: {percent(share)} of the samples leave here, after {quantity(macs)} MACs"


def _between(anchors: tuple[tuple[int, int, int], ...], step: float) -> str:
    place = min(max(step, 0.0), 1.0) * (len(anchors) - 1)
    index = min(int(place), len(anchors) - 2)
    weight = place - index
    mixed = (round(a + (b - a) * weight) for a, b in zip(anchors[index], anchors[index + 1], strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
