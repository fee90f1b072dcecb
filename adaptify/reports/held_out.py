"""What a run knows of held-out images, by which a choice among runs leaves the test images alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adaptify.reports.curves import Place, chosen
from adaptify.reports.pareto import FrontPoint
from adaptify.reports.schema import Report


def held_out(report: Report) -> Place | None:
    """Return mean MACs and top-1 on held-out images; None where the run did not look at any.

    They are of the network that was written: where thresholds were chosen on these images, under those.
    """
    seen = report.calibration
    if seen is not None and seen.split == "holdout" and seen.macs is not None:
        return seen.macs, seen.accuracy
    return None if report.held_out is None else (report.held_out.macs, report.held_out.accuracy)


def held_out_front(
    reports: Sequence[tuple[str, Report]], judged: Mapping[str, Place]
) -> tuple[FrontPoint, ...]:
    """Return the runs that no other one beats on held-out images, with what they do on test images.

    Args:
        reports: Name and report of each run.
        judged: Name -> MACs and accuracy on held-out images.
    """
    front: list[FrontPoint] = []
    best = -1.0
    for name, report in sorted(reports, key=lambda item: (judged[item[0]][0], -judged[item[0]][1])):
        place = chosen(report)
        if judged[name][1] > best and place is not None:
            best = judged[name][1]
            front.append(FrontPoint(name, *place, chosen=True))
    return tuple(front)
