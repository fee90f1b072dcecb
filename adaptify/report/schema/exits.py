"""Early exits: where samples leave, what thresholds were chosen and by what."""

from __future__ import annotations

from typing import Any

from adaptify.report.schema.part import Fraction, Part, Threshold


class Calibration(Part):
    """What was asked for and what came of it on the samples that thresholds were chosen on.

    Attributes:
        request: One of `max_drop` (points of top-1), `max_macs` (fraction kept), `thresholds`.
        base_accuracy: Accuracy of the network as it came, on the same samples.
        macs: Mean MACs on these samples.
    """

    split: str
    samples: int
    request: dict[str, Any]
    accuracy: Fraction
    base_accuracy: Fraction
    macs: float | None = None


class Exit(Part):
    """A place where samples leave, on the test samples; the last one is the network's own output.

    Attributes:
        share: Fraction of all samples that leave here, `samples` of them.
        macs: MACs of a sample that leaves here; `share_macs` as a fraction of the whole network.
        accuracy_all: Accuracy if every sample left here.
        accuracy_left: Accuracy on those that did; `None` when none did.
    """

    name: str
    threshold: Threshold = None
    share: Fraction
    macs: float
    share_macs: float
    accuracy_all: Fraction
    accuracy_left: Fraction | None
    samples: int


class Point(Part):
    """One choice of thresholds, with what it gives on the calibration samples."""

    thresholds: list[Threshold]
    accuracy: Fraction
    macs: float
    exit_shares: list[float]
