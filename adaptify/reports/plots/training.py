"""The figures of training: curves over its epochs, with the epoch that was kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from adaptify.reports.learned import chosen_epoch
from adaptify.reports.plots.axes import Axes, Writer, numbers, shares, whole_numbers
from adaptify.reports.schema import Training
from adaptify.reports.svg import Svg
from adaptify.text import percent, whole

Curve = tuple[str, Sequence[float | None]]

SHARES = {"valid": "left to learn", "leave": "leave"}
"""What shares of the training samples are reported for each exit, and what they are called."""

_MOST_DOTS = 40  # more of them hide the curve


def loss_curves(training: Training) -> list[Curve]:
    """Return the loss, and its terms where there are at least two."""
    epochs = training.epochs
    names = list(dict.fromkeys(name for epoch in epochs for name in epoch.terms))
    terms: list[Curve] = [(name, [epoch.terms.get(name) for epoch in epochs]) for name in names]
    return [("loss", [epoch.loss for epoch in epochs]), *(terms if len(terms) > 1 else [])]


def exit_loss_curves(training: Training, exits: Sequence[str]) -> list[Curve]:
    """Return the loss of each exit, where the loss that was minimised is their sum (Yu et al., Fig. 3)."""
    if len(exits) < 2 or not all(name in epoch.terms for epoch in training.epochs for name in exits):
        return []
    return [(name, [epoch.terms[name] for epoch in training.epochs]) for name in exits]


def exit_share_curves(training: Training, exits: Sequence[str], kind: str) -> list[Curve]:
    """Return shares of the training samples, of a kind in `SHARES`; none where they were not told."""
    keys = [f"{kind}.{name}" for name in exits]
    if not keys or not all(key in epoch.figures for epoch in training.epochs for key in keys):
        return []
    curves = [[epoch.figures[key] for epoch in training.epochs] for key in keys]
    return list(zip(exits, curves, strict=True))


def accuracy_curves(training: Training) -> list[Curve]:
    """Return the accuracy on held-out samples, where it was measured, and on training samples."""
    curves: list[Curve] = [
        ("held-out", [epoch.holdout_accuracy for epoch in training.epochs]),
        ("train", [epoch.train_accuracy for epoch in training.epochs]),
    ]
    return [curve for curve in curves if any(value is not None for value in curve[1])]


def kept_curves(training: Training) -> list[Curve]:
    """Return the MACs kept, where they were measured."""
    kept = [epoch.kept for epoch in training.epochs]
    return [("MACs kept", kept)] if any(value is not None for value in kept) else []


def loss_figure(training: Training, width: float, height: float = 300) -> Markup:
    """Draw the loss and its terms."""
    return _figure(training, loss_curves(training), "Loss", numbers, _loss, width, height)


def exit_loss_figure(training: Training, exits: Sequence[str], width: float, height: float = 300) -> Markup:
    """Draw the loss of each exit, in the colours of exits."""
    curves = exit_loss_curves(training, exits)
    return _figure(training, curves, "Loss of each exit", numbers, _loss, width, height, colours="x")


def exit_share_figure(
    training: Training, exits: Sequence[str], kind: str, width: float, height: float = 300
) -> Markup:
    """Draw a share of the training samples for each exit, of a kind in `SHARES`."""
    curves = exit_share_curves(training, exits, kind)
    name = f"Training samples, {SHARES[kind]}"
    return _figure(training, curves, name, shares, percent, width, height, colours="x")


def accuracy_figure(training: Training, width: float, height: float = 300) -> Markup:
    """Draw accuracy on training and held-out samples."""
    return _figure(training, accuracy_curves(training), "Accuracy", shares, _accuracy, width, height)


def kept_figure(training: Training, width: float, height: float = 300) -> Markup:
    """Draw the MACs kept."""
    return _figure(training, kept_curves(training), "MACs kept", shares, percent, width, height)


def _figure(
    training: Training,
    curves: Sequence[Curve],
    name: str,
    write_y: Writer,
    tell: Callable[[float], str],
    width: float,
    height: float,
    colours: str = "s",
) -> Markup:
    epochs = [epoch.epoch for epoch in training.epochs]
    values = [value for _, curve in curves for value in curve if value is not None]
    low, high = min(values), max(values)
    # A curve that hardly moves is not blown up, and no share is shown where there can be none.
    room = max(0.06 * (high - low), 0.005 * abs(high), 1e-6)
    top = high + room if write_y is numbers or high > 1 else min(high + room, 1.0)
    told = "; ".join(f"{label} {_from_to(curve, tell)}" for label, curve in curves)
    axes = Axes(
        Svg(width, height, f"{name} over {whole(len(epochs))} epochs: {told}"),
        x=(epochs[0], epochs[-1]),
        y=(max(0.0, low - room) if low >= 0 else low - room, top),
    )
    axes.grid("epoch", "", whole_numbers, write_y)
    svg, kept = axes.svg, chosen_epoch(training)
    if kept is not None:
        at = axes.x(kept.epoch)
        svg.line(at, axes.top, at, axes.bottom, "mean")
    for index, (label, curve) in reversed(list(enumerate(curves))):
        points = [(epoch, value) for epoch, value in zip(epochs, curve, strict=True) if value is not None]
        svg.polyline([(axes.x(a), axes.y(b)) for a, b in points], f"series {colours}{index}")
        for epoch, value in points:
            said = f"epoch {epoch}: {label} {tell(value)}"
            if kept is not None and epoch == kept.epoch:
                svg.circle(axes.x(epoch), axes.y(value), 4.5, f"peak {colours}{index}", f"{said} (kept)")
            elif len(points) <= _MOST_DOTS:
                svg.circle(axes.x(epoch), axes.y(value), 2.2, f"bar {colours}{index}", said)
    return svg.markup()


def _from_to(curve: Sequence[float | None], tell: Callable[[float], str]) -> str:
    values = [value for value in curve if value is not None]
    return f"from {tell(values[0])} to {tell(values[-1])}"


def _loss(value: float) -> str:
    return f"{value:.3g}"


def _accuracy(value: float) -> str:
    return percent(value, 2)
