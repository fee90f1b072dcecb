"""Marks of how the MACs of single samples are distributed."""

from __future__ import annotations

from adaptify.reports.plots.axes import BOTTOM, Axes
from adaptify.reports.schema import MacsPerSample
from adaptify.reports.svg import apart
from adaptify.text import percent

BELOW_QUANTILES = BOTTOM + 16  # px below the plotting area, with the words of the marks


def mark_quantiles(axes: Axes, spent: MacsPerSample, whole: float) -> None:
    """Mark mean, median and 95th percentile below the x axis, their labels moved apart.

    Args:
        axes: The plotting area, with `BELOW_QUANTILES` below it; its x axis is of fractions of `whole`.
        spent: What to mark.
        whole: MACs of the whole network.
    """
    marks = sorted(
        (value / whole, name)
        for name, value in (("mean", spent.mean), ("median", spent.median), ("p95", spent.p95))
    )
    half = 21.0  # px: half the widest of the three words
    places = apart([axes.x(at) for at, _ in marks], 2 * half, axes.left + half, axes.right - half)
    for (at, name), place in zip(marks, places, strict=True):
        axes.svg.polygon(
            [
                (axes.x(at), axes.bottom + 1),
                (axes.x(at) - 5, axes.bottom - 8),
                (axes.x(at) + 5, axes.bottom - 8),
            ],
            "mark",
            f"{name}: {percent(at)} of the MACs",
        )
        axes.svg.text(place, axes.bottom + 32, name, "label", "middle")
    mean = axes.x(spent.mean / whole)
    axes.svg.line(mean, axes.top, mean, axes.bottom - 8, "mean")
