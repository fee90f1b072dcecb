"""The figures of gates that look at the sample: what samples take, and which gates each class opens."""

from __future__ import annotations

from markupsafe import Markup

from adaptify.reports.plots.axes import Axes, no_numbers, shortened
from adaptify.reports.plots.heat import (
    ABOVE_MAP,
    BELOW_MAP,
    draw_row,
    names_width,
    row_height,
    rows_for_one_name,
)
from adaptify.reports.plots.quantiles import BELOW_QUANTILES, mark_quantiles
from adaptify.reports.schema import BlockUse, ChannelUse, MacsHistogram, MacsPerSample
from adaptify.reports.svg import Svg
from adaptify.text import percent, whole


def macs_figure(
    macs: MacsHistogram, spent: MacsPerSample, base: float, width: float, height: float = 300
) -> Markup:
    """Draw how the MACs of single samples are distributed.

    Args:
        macs: The histogram.
        spent: Mean, median and 95th percentile, which are marked.
        base: MACs of the whole network.
        width: Width of the figure.
        height: Height of the figure.
    """
    total = max(sum(macs.counts), 1)
    low, high = macs.low / base, macs.high / base
    step = (high - low) / len(macs.counts)
    svg = Svg(width, height, f"MACs per image: from {percent(low)} to {percent(high)} of the whole network's")
    axes = Axes(svg, x=(low, high), y=(0.0, 1.08 * max(macs.counts) / total), bottom=BELOW_QUANTILES)
    axes.grid("of the MACs", "of the images")
    for index, count in enumerate(macs.counts):
        left, right = axes.x(low + index * step) + 0.75, axes.x(low + (index + 1) * step) - 0.75
        # The smallest part is still to be seen: an empty bin and a rare one differ.
        tall = max(axes.bottom - axes.y(count / total), 1.5) if count else 0
        told = (
            f"{percent(low + index * step)} to {percent(low + (index + 1) * step)} of the MACs: "
            f"{whole(count)} images ({percent(count / total)})"
        )
        svg.rect(left, axes.bottom - tall, right - left, tall, "bar s0", told)
    mark_quantiles(axes, spent, base)
    return svg.markup()


def blocks_figure(blocks: list[BlockUse], width: float, height: float = 300) -> Markup:
    """Draw the share of samples that run each block, and the gradients as parts of the largest one."""
    largest = max(block.gradient for block in blocks) or 1.0
    axes = Axes(
        Svg(width, height, f"Execution rates and gradients of {len(blocks)} blocks"),
        x=(0.0, len(blocks)),
        y=(0.0, 1.0),
    )
    svg = axes.svg
    axes.grid("blocks, in the order of the network", "of the images; of the largest gradient", no_numbers)
    gap = 2 if axes.x(1) - axes.x(0) > 6 else 0.4
    line = []
    for index, block in enumerate(blocks):
        left, right = axes.x(index) + gap / 2, axes.x(index + 1) - gap / 2
        told = f"{block.name}: run by {percent(block.executed)}, mean absolute gradient {block.gradient:.3g}"
        svg.rect(left, axes.top, right - left, axes.bottom - axes.top, "saved", told)
        svg.rect(
            left, axes.y(block.executed), right - left, axes.bottom - axes.y(block.executed), "bar s0", told
        )
        if len(name := shortened(block.name, right - left)) == len(block.name):
            svg.text((left + right) / 2, axes.bottom + 17, name, "tick", "middle")
        line.append(((left + right) / 2, axes.y(block.gradient / largest), told))
    for cls in ("under", "series s3"):
        svg.polyline([(x, y) for x, y, _ in line], cls)
    for x, y, told in line:
        svg.circle(x, y, 4, "peak s3", told)
    return svg.markup()


def channels_figure(use: ChannelUse, width: float, height: float = 300) -> Markup:
    """Draw a row for each class and a column for each gate, darker where more of the class open it."""
    shown = len(use.open[0])
    tall = row_height(len(use.classes), height)
    svg = Svg(
        width,
        ABOVE_MAP + tall * len(use.classes) + BELOW_MAP,
        f"Share of each of {len(use.classes)} classes that opens each of {shown} gates at {use.name}",
    )
    left = names_width(use.classes, width)
    axes = Axes(svg, x=(0, shown), y=(len(use.classes), 0), left=left, bottom=BELOW_MAP)
    every = rows_for_one_name(tall)
    for index, (name, row) in enumerate(zip(use.classes, use.open, strict=True)):
        told = f"{name}: opens {percent(sum(row) / shown)} of these gates, a mean over its images"
        label = name if index % every == 0 else ""
        draw_row(axes, ABOVE_MAP + index * tall, tall, label, row, told)
    svg.text(axes.left, axes.bottom + 17, "gate 1", "tick")
    svg.text(axes.right, axes.bottom + 17, f"gate {shown}", "tick", "end")
    return svg.markup()
