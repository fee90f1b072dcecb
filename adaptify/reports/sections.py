"""What the page's sections of gates and of training show, drawn and put in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from markupsafe import Markup

from adaptify.reports.learned import (
    MEANINGS,
    chosen_epoch,
    gates_in_words,
    is_policy,
    kinds_in_words,
    openness_in_words,
    site_labels,
)
from adaptify.reports.plots.gating import (
    FEW_SITES,
    activity_figure,
    histogram_figure,
    positions,
    sites_figure,
    sweep_figure,
    sweep_modes,
)
from adaptify.reports.plots.samples import blocks_figure, channels_figure, macs_figure
from adaptify.reports.plots.training import (
    SHARES,
    Curve,
    accuracy_curves,
    accuracy_figure,
    exit_loss_curves,
    exit_loss_figure,
    exit_share_curves,
    exit_share_figure,
    kept_curves,
    kept_figure,
    loss_curves,
    loss_figure,
)
from adaptify.reports.schema import Gating, Report, Training

_WIDE, _NARROW = 520, 340  # px, at which text has its nominal size
_MOST_CLASSES = 24  # more are shown as the cheapest and the dearest

T = TypeVar("T")


def gating_section(gating: Gating, came: float | None) -> dict[str, Any]:
    """Return what the section of gates shows; a figure that has nothing to show is left out."""
    labels = site_labels(gating)
    one, many = openness_in_words(gating)
    figures = {
        "sweep": partial(sweep_figure, gating, came) if gating.sweep else None,
        "histogram": partial(histogram_figure, gating) if any(gating.histogram) else None,
        "sites": partial(sites_figure, gating) if len(gating.sites) > 1 else None,
        "activity": partial(activity_figure, gating) if gating.sites and len(gating.activity) > 1 else None,
    }
    return {
        "words": gates_in_words(gating),
        "kinds": kinds_in_words(gating),
        "openness": one,
        "opennesses": many,
        "meanings": MEANINGS,
        "policy": [mode for mode in (*gating.modes, *gating.sweep) if is_policy(mode, gating)],
        "lines": labels if len(labels) <= FEW_SITES else [],
        "positions": positions(gating),
        "others": sweep_modes(gating, came)[2] if gating.sweep else [],
        "figures": {
            name: wide_and_narrow(draw) if draw is not None else None for name, draw in figures.items()
        },
    }


def samples_section(report: Report) -> dict[str, Any]:
    """Return what the section of single images shows, of a report whose gates have `samples`; {}: nothing."""
    assert report.gating is not None
    assert report.gating.samples is not None
    samples, base = report.gating.samples, report.before.macs
    draw_macs = (
        partial(macs_figure, samples.macs, report.macs_per_sample, base) if samples.macs is not None else None
    )
    # A single block is told of in words already; gates that nobody opens, or of no class, show nothing.
    draw_blocks = partial(blocks_figure, samples.blocks) if len(samples.blocks) > 1 else None
    uses = [use for use in samples.channels if use.open and use.open[0]]
    classes = ends(samples.classes)
    if not (draw_macs or draw_blocks or uses or samples.classes or samples.examples.easy):
        return {}
    return {
        "figures": {
            "macs": wide_and_narrow(draw_macs) if draw_macs is not None else None,
            "blocks": wide_and_narrow(draw_blocks) if draw_blocks is not None else None,
            "channels": [(use, wide_and_narrow(partial(channels_figure, use))) for use in uses],
        },
        "same_name": len({use.name for use in uses}) < len(uses),
        "classes": classes if samples.classes else [],
        "classes_between": len(samples.classes) - sum(map(len, classes)),
        "examples": samples.examples,
        "gradient_images": samples.gradient_images,
    }


def ends(classes: Sequence[T]) -> list[Sequence[T]]:
    """Return classes in their order as one group, or of many those at both ends as two."""
    if len(classes) <= _MOST_CLASSES:
        return [classes]
    return [classes[: _MOST_CLASSES // 2], classes[-_MOST_CLASSES // 2 :]]


def training_section(training: Training, exits: Sequence[str] = ()) -> dict[str, Any]:
    """Return what the section of training shows; a single epoch makes no curve.

    Args:
        training: How the network was trained.
        exits: Names of its exits, the output last. Where each was trained by its own loss, these are shown.
    """
    curves: dict[str, tuple[Callable[..., Markup], list[Curve]]] = {
        "loss": (partial(loss_figure, training), loss_curves(training)),
        "accuracy": (partial(accuracy_figure, training), accuracy_curves(training)),
    }
    if own := exit_loss_curves(training, exits):
        curves["loss"] = partial(exit_loss_figure, training, exits), own
    if kept := kept_curves(training):
        curves["kept"] = partial(kept_figure, training), kept
    for kind in SHARES:
        if told := exit_share_curves(training, exits, kind):
            curves[kind] = partial(exit_share_figure, training, exits, kind), told
    # Three stand side by side on a desk, each as narrow as on a phone.
    show = wide_and_narrow if len(curves) < 3 else _narrow
    return {
        "chosen": chosen_epoch(training),
        "terms": list(dict.fromkeys(term for epoch in training.epochs for term in epoch.terms)),
        "figures": {name: show(draw) for name, (draw, _) in curves.items()}
        if len(training.epochs) > 1
        else {},
        "legends": {name: [label for label, _ in found] for name, (_, found) in curves.items()},
        "shares": any(kind in curves for kind in SHARES),
        # Which figures have the colours of exits.
        "by_exit": [*(["loss"] if own else []), *SHARES],
    }


def _narrow(draw: Callable[..., Markup]) -> Markup:
    return draw(_NARROW, 250)


def wide_and_narrow(draw: Callable[..., Markup], wide: float = _WIDE) -> Markup:
    """Return a figure drawn twice, with text of the same size: for a desk, in `wide` px, and for a phone."""
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(
        draw(wide), draw(_NARROW, 270)
    )
