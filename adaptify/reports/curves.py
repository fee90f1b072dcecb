"""Accuracy against compute on the test samples: the curves of a run, and what it gives within a budget."""

from __future__ import annotations

from collections.abc import Sequence

from adaptify.reports.schema import Report

Place = tuple[float, float]
"""MACs per sample, and accuracy."""

_DEPTH = 0.20  # of accuracy
_TOLERANCE = 1 + 1e-9  # MACs are sums of float64 shares


def anytime(report: Report) -> list[Place]:
    """Return what each exit gives where all samples leave there, the output last."""
    if report.anytime:
        return [(item.macs, item.accuracy) for item in report.anytime]
    # An older report has them without the heads that its policy does not use.
    return [(exit_.macs, exit_.accuracy_all) for exit_ in report.exits]


def budgeted(report: Report) -> list[Place]:
    """Return what the policies of a run give, the cheapest first: of its exits, or of its gates."""
    if report.budgeted:
        return sorted((item.macs, item.accuracy) for item in report.budgeted)
    if report.gating is not None:
        return sorted((mode.kept * report.before.macs, mode.accuracy) for mode in report.gating.sweep)
    return []


def chosen(report: Report) -> Place | None:
    """Return what the network does as it was written; None where its accuracy was not measured."""
    return (report.after.macs, report.after.accuracy) if report.after.accuracy is not None else None


def came(report: Report) -> Place | None:
    """Return what the network did as it came; None where its accuracy was not measured."""
    return (report.before.macs, report.before.accuracy) if report.before.accuracy is not None else None


def anytime_within(report: Report, macs: float) -> float | None:
    """Return the accuracy of the deepest exit that a sample reaches within `macs`; None: there is none."""
    if len(report.exits) < 2:
        return None
    within = [accuracy for cost, accuracy in anytime(report) if cost <= macs * _TOLERANCE]
    return within[-1] if within else None


def budgeted_within(report: Report, macs: float) -> float | None:
    """Return the test accuracy of the policy that is chosen for a budget; None: nothing fits into it.

    Of exits, the policy is the one that was the most accurate within the budget on held-out samples: test
    samples have no part in the choice. Of gates, whose thresholds were measured on test samples alone, it is
    the one that takes the most; of a network that has one policy only, that one.
    """
    if report.budgeted:
        fitting = [
            (point.accuracy, -point.macs, index)
            for index, point in enumerate(report.frontier)
            if point.macs <= macs * _TOLERANCE
        ]
        return report.budgeted[max(fitting)[2]].accuracy if fitting else None
    places = budgeted(report) or [place for place in [chosen(report)] if place is not None]
    within = [accuracy for cost, accuracy in places if cost <= macs * _TOLERANCE]
    return within[-1] if within else None


def worth_drawing(before: Place, places: Sequence[Place]) -> bool:
    """Whether a figure of `places` shows a network as it came, too.

    One of random weights is so far below that it would press the rest into a corner.
    """
    return before[1] >= min(accuracy for _, accuracy in places) - _DEPTH
