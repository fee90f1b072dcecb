"""The figures of learned gates: what they give, how sure they are, where and when they are open."""

from __future__ import annotations

from markupsafe import Markup

from adaptify.reports.learned import is_policy, openness_in_words, site_labels, thinned
from adaptify.reports.plots.axes import (
    CHARACTER,
    Axes,
    diamond,
    floor_of_interest,
    no_numbers,
    numbers,
    shortened,
    square,
    whole_numbers,
)
from adaptify.reports.plots.heat import (
    ABOVE_MAP,
    BELOW_MAP,
    draw_row,
    names_width,
    row_height,
    rows_for_one_name,
)
from adaptify.reports.schema import GateMode, Gating
from adaptify.reports.svg import Svg
from adaptify.text import percent, whole

FEW_SITES = 4  # that many are told apart as lines
_MOST_COLUMNS = 60  # of the heat map
_AFTER_ALL = 10  # px, between the row of all gates and those of sites
_MOST_KEPT = 1.2  # of the whole network's MACs


def sweep_modes(gating: Gating, came: float | None) -> tuple[list[GateMode], list[GateMode], list[GateMode]]:
    """Return what the figure of thresholds shows: the policy if it is known, its curve, and other modes.

    What loses much more than the policy, or costs several runs of the network, is left to the tables: it
    would press the rest into a corner.
    """
    chosen = [mode for mode in (*gating.modes, *gating.sweep) if is_policy(mode, gating)][:1]
    best = came if came is not None else max(mode.accuracy for mode in gating.sweep)
    floor = floor_of_interest(best, min([best, *(mode.accuracy for mode in chosen or gating.sweep)]))
    curve = [mode for mode in gating.sweep if mode.accuracy >= floor]
    others = [
        mode
        for mode in gating.modes
        if mode.name != "threshold" and mode.accuracy >= floor and mode.kept <= _MOST_KEPT
    ]
    return chosen, curve, others


def sweep_figure(gating: Gating, came: float | None, width: float, height: float = 300) -> Markup:
    """Draw accuracy against the MACs kept for each tau, and the other ways of deciding beside them.

    Args:
        gating: The gates; its `sweep` must not be empty.
        came: Accuracy of the network as it came, if it was measured.
        width: Width of the figure.
        height: Height of the figure.
    """
    chosen, curve, others = sweep_modes(gating, came)
    everything = [(mode.kept, mode.accuracy) for mode in (*curve, *others, *chosen)]
    everything += [(1.0, came)] if came is not None else []
    low_y, high_y = min(y for _, y in everything), max(y for _, y in everything)
    room = max(high_y - low_y, 0.004) * 0.12
    axes = Axes(
        Svg(width, height, f"Accuracy against MACs kept, for {len(gating.sweep)} thresholds of the gates"),
        x=(max(0.0, min(x for x, _ in everything) - 0.05), max(x for x, _ in everything) + 0.03),
        y=(max(0.0, low_y - room), min(1.0, high_y + room)),
    )
    svg, x, y = axes.svg, axes.x, axes.y
    axes.grid("of the MACs kept", "accuracy")
    if came is not None:
        svg.line(axes.left, y(came), axes.right, y(came), "baseline")
        square(svg, x(1.0), y(came), "came", f"as it came: accuracy {percent(came, 2)}")
    svg.polyline([(x(mode.kept), y(mode.accuracy)) for mode in curve], "curve")
    for mode in curve:
        svg.circle(x(mode.kept), y(mode.accuracy), 2.6, "point", _told(mode))
    for mode in others:
        for low, high in _deviation(mode):
            seen = max(low, axes.low_y), min(high, axes.high_y)
            svg.line(x(mode.kept), y(seen[0]), x(mode.kept), y(seen[1]), "axis")
        diamond(svg, x(mode.kept), y(mode.accuracy), "test", _told(mode))
    for mode in chosen:
        svg.circle(x(mode.kept), y(mode.accuracy), 10, "halo")
        svg.circle(x(mode.kept), y(mode.accuracy), 5, "chosen", f"chosen: {_told(mode)}")
        axes.label(x(mode.kept), y(mode.accuracy), f"{percent(mode.kept)} kept, {percent(mode.accuracy, 2)}")
    return svg.markup()


def histogram_figure(gating: Gating, width: float, height: float = 300) -> Markup:
    """Draw how the probabilities of the gates are distributed, on either side of tau."""
    total = max(sum(gating.histogram), 1)
    parts = [count / total for count in gating.histogram]
    axes = Axes(
        Svg(width, height, f"How open gates are: {percent(gating.polarised)} are near 0 or 1"),
        x=(0.0, 1.0),
        y=(0.0, max(*parts, 0.01) * 1.08),
    )
    one, many = openness_in_words(gating)
    axes.grid(one, f"of the {many}", numbers)
    step = 1 / len(parts)
    for index, part in enumerate(parts):
        low, high = index * step, (index + 1) * step
        # A bin around tau counts by its middle; saliences pile up at 0 itself, where they are closed.
        border = low if gating.kind == "saliences" else (low + high) / 2
        side = "s0" if border > gating.tau else "shut"
        left, right = axes.x(low) + 0.75, axes.x(high) - 0.75
        told = f"{low:.3g} to {high:.3g}: {percent(part)} of the {many}"
        # The smallest part is still to be seen: an empty bin and a rare one differ.
        tall = max(axes.bottom - axes.y(part), 1.5) if part else 0
        axes.svg.rect(left, axes.bottom - tall, right - left, tall, f"bar {side}", told)
    at = axes.x(min(max(gating.tau, 0.0), 1.0))
    axes.svg.line(at, axes.top, at, axes.bottom, "mean")
    written = f"\u03c4 = {gating.tau:g}"
    if at + 6 + len(written) * CHARACTER <= axes.right:
        axes.svg.text(at + 6, axes.top + 12, written, "label strong")
    else:
        axes.svg.text(at - 6, axes.top + 12, written, "label strong", "end")
    return axes.svg.markup()


def sites_figure(gating: Gating, width: float, height: float = 300) -> Markup:
    """Draw the share of open gates at each site, coloured by position."""
    sites, kinds = gating.sites, positions(gating)
    axes = Axes(
        Svg(width, height, f"Share of open gates at {len(sites)} sites: {percent(gating.open)} over all"),
        x=(0.0, len(sites)),
        y=(0.0, 1.0),
    )
    axes.grid("sites, in the order of the network", "of the gates open", no_numbers)
    gap = 2 if axes.x(1) - axes.x(0) > 6 else 0.4
    for index, (site, label) in enumerate(zip(sites, site_labels(gating), strict=True)):
        left, right = axes.x(index) + gap / 2, axes.x(index + 1) - gap / 2
        told = f"{label} ({whole(site.gates)} gates): {percent(site.open)} open"
        tall = max(axes.bottom - axes.y(site.open), 1.0)
        axes.svg.rect(left, axes.top, right - left, axes.bottom - axes.top, "saved", told)
        axes.svg.rect(
            left, axes.bottom - tall, right - left, tall, f"bar s{kinds.index(site.position)}", told
        )
        if len(name := shortened(label, right - left)) == len(label):
            axes.svg.text((left + right) / 2, axes.bottom + 17, name, "tick", "middle")
    axes.svg.line(axes.left, axes.y(gating.open), axes.right, axes.y(gating.open), "mean")
    return axes.svg.markup()


def positions(gating: Gating) -> list[str]:
    """Return the kinds of positions of the sites, in the order in which they come."""
    return list(dict.fromkeys(site.position for site in gating.sites))


def activity_figure(gating: Gating, width: float, height: float = 300) -> Markup:
    """Draw how open the gates were over the epochs: a line for each of few sites, else a heat map."""
    if len(gating.sites) <= FEW_SITES:
        return _activity_lines(gating, width, height)
    return _heat_map(gating, width, height)


def _activity_lines(gating: Gating, width: float, height: float) -> Markup:
    epochs = gating.activity
    axes = Axes(
        Svg(width, height, f"Mean openness of {len(gating.sites)} sites over {len(epochs)} epochs"),
        x=(epochs[0].epoch, epochs[-1].epoch),
        y=(0.0, 1.0),
    )
    axes.grid("epoch", f"mean {openness_in_words(gating)[0]}", whole_numbers)
    for site, label in enumerate(site_labels(gating)):
        axes.svg.polyline([(axes.x(e.epoch), axes.y(e.sites[site])) for e in epochs], f"series s{site}")
        for epoch in thinned(epochs, _MOST_COLUMNS):
            told = f"epoch {epoch.epoch}: {label} {percent(epoch.sites[site])}"
            axes.svg.circle(axes.x(epoch.epoch), axes.y(epoch.sites[site]), 2.2, f"bar s{site}", told)
    axes.svg.polyline([(axes.x(e.epoch), axes.y(e.open)) for e in epochs], "mean")
    return axes.svg.markup()


def _heat_map(gating: Gating, width: float, height: float) -> Markup:
    """A row for all gates, then one for each site; a column for an epoch, darker where more are open."""
    epochs = thinned(gating.activity, _MOST_COLUMNS)
    labels = ["all gates", *site_labels(gating)]
    rows = [[e.open for e in epochs], *([e.sites[i] for e in epochs] for i in range(len(gating.sites)))]
    tall = row_height(len(rows), height)
    told = f"from {percent(epochs[0].open)} to {percent(epochs[-1].open)} over all gates"
    svg = Svg(
        width,
        ABOVE_MAP + tall * len(rows) + _AFTER_ALL + BELOW_MAP,
        f"Open gates of {len(rows) - 1} sites over training: {told}",
    )
    axes = Axes(svg, x=(0, len(epochs)), y=(len(rows), 0), left=names_width(labels, width), bottom=BELOW_MAP)
    every = rows_for_one_name(tall)
    for index, (label, row) in enumerate(zip(labels, rows, strict=True)):
        y = ABOVE_MAP + index * tall + (_AFTER_ALL if index else 0)
        named = index == 0 or (index - 1) % every == 0
        said = f"{label}: {percent(row[0])} at first, {percent(row[-1])} in the end"
        draw_row(axes, y, tall, label if named else "", row, said)
    for epoch, place, anchor in ((epochs[0], axes.left, "start"), (epochs[-1], axes.right, "end")):
        svg.text(place, axes.bottom + 17, f"epoch {epoch.epoch}", "tick", anchor)
    return svg.markup()


def _deviation(mode: GateMode) -> list[tuple[float, float]]:
    if mode.accuracy_std is None:
        return []
    return [(mode.accuracy - mode.accuracy_std, mode.accuracy + mode.accuracy_std)]


def _told(mode: GateMode) -> str:
    name = mode.name if mode.tau is None else f"{mode.name} \u03c4 = {mode.tau:g}"
    return f"{name}: {percent(mode.kept)} of the MACs, accuracy {percent(mode.accuracy, 2)}"
