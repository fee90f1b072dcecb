"""What follows from the figures of learned gates and of training: the same for the page and the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from adaptify.reports.schema import GateMode, Gating, Report, Training, TrainingEpoch
from adaptify.text import percent, quantity, whole

MEANINGS = {
    "threshold": "gates above \N{GREEK SMALL LETTER TAU} are open",
    "always-on": "all gates are open",
    "stochastic": "gates are drawn by their probabilities",
    "ensemble": "mean prediction of several draws",
}

T = TypeVar("T")


def gates_in_words(gating: Gating) -> str:
    """Return how many gates there are, and what for, as `1,184 channel gates at 16 sites`."""
    told = " and ".join(f"{whole(count)} {kind} gate{_s(count)}" for kind, count in _kinds(gating).items())
    return f"{told} at {whole(len(gating.sites))} site{_s(len(gating.sites))}"


def kinds_in_words(gating: Gating) -> str:
    """Return what gates close: `channel`, `layer`, or both."""
    return " and ".join(_kinds(gating))


def _kinds(gating: Gating) -> dict[str, int]:
    """How many gates there are of each kind that there is."""
    layers = sum(site.gates for site in gating.sites if site.position == "layer")
    found = {kind: count for kind, count in (("layer", layers), ("channel", gating.gates - layers)) if count}
    return found or {gating.granularity: 0}


def openness_in_words(gating: Gating) -> tuple[str, str]:
    """Return what says how open a gate is, and its plural."""
    if gating.kind == "saliences":
        return "salience", "saliences"
    return "probability of being open", "probabilities"


def gating_line(report: Report, gating: Gating) -> str:
    """Return the state of the gates in one sentence."""
    each = "for each image" if gating.data_dependent else "the same for all images"
    told = (
        f"{gates_in_words(gating)}, {each}: {percent(gating.open)} open at tau {gating.tau:g}, "
        f"{percent(gating.polarised)} polarised"
    )
    if gating.gate_macs:
        cost = percent(gating.gate_macs / report.before.macs, 2)
        told += f"; the gates take {quantity(gating.gate_macs)} MACs ({cost})"
    return told


def training_line(training: Training) -> str:
    """Return the course of training in one sentence."""
    epochs = training.epochs
    if not epochs:
        return "trained: 0 epochs"
    first, last, chosen = epochs[0], epochs[-1], chosen_epoch(training)
    told = f"trained: {whole(len(epochs))} epoch{_s(len(epochs))}, loss {first.loss:.3g} -> {last.loss:.3g}"
    if chosen is None:
        return f"{told}; the weights from before the first epoch are kept"
    told += f"; epoch {chosen.epoch} is kept: train {percent(chosen.train_accuracy, 2)}"
    if chosen.holdout_accuracy is not None:
        told += f", held-out {percent(chosen.holdout_accuracy, 2)}"
    if chosen.kept is not None:
        told += f", {percent(chosen.kept)} of the MACs"
    return told


def chosen_epoch(training: Training) -> TrainingEpoch | None:
    """Return the epoch whose weights were kept; `None` where they are those that training began with."""
    return next((epoch for epoch in training.epochs if epoch.epoch == training.chosen), None)


def is_policy(mode: GateMode, gating: Gating) -> bool:
    """Whether a mode is what the network does as it was written: thresholds at the policy's tau."""
    return mode.name == "threshold" and mode.tau is not None and math.isclose(mode.tau, gating.tau)


def site_labels(gating: Gating) -> list[str]:
    """Return a name for each site; those of the same layer get their position beside it."""
    names = [site.name for site in gating.sites]
    return [
        site.name if names.count(site.name) == 1 else f"{site.name} {site.position}" for site in gating.sites
    ]


def thinned(items: Sequence[T], most: int) -> list[T]:
    """Return at most `most` of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def _s(count: int) -> str:
    return "" if count == 1 else "s"
