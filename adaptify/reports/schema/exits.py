"""Early exits: where samples leave, what thresholds were chosen and by what."""

from __future__ import annotations

from typing import Any

from adaptify.reports.schema.part import Count, Fraction, Part, Threshold


class Promise(Part):
    """What holds for new samples, and the test that it rests on.

    Attributes:
        max_drop: Points of top-1 that are lost at most, against the same network without leaving early.
        confidence: Probability, over the draw of the held-out samples, that this is true.
        samples: Held-out samples of the test; thresholds were chosen on others.
        lost: How many of them only the whole network gets right.
        gained: How many of them only the network with exits gets right.
        drop: (lost - gained) / samples, in points.
        tested: Choices of thresholds that were tested, one after the other.
        method: The test.
    """

    max_drop: float
    confidence: Fraction
    samples: Count
    lost: Count
    gained: Count
    drop: float
    tested: Count
    method: str


class Calibration(Part):
    """What was asked for and what came of it on the samples that thresholds were chosen on.

    Attributes:
        images: SHA-256 over all held-out images; older reports have none.
        request: `max_drop` (points of top-1) with or without `confidence`, `max_macs` (fraction kept), or
            `thresholds`; and the `rule` that they were chosen by, unless it is the search.
        base_accuracy: On the same samples, without leaving early; of gates, of the network as it came.
        macs: Mean MACs on these samples.
        promise: What was promised, if anything was.
    """

    split: str
    samples: int
    images: str | None = None
    request: dict[str, Any]
    accuracy: Fraction
    base_accuracy: Fraction
    macs: float | None = None
    promise: Promise | None = None


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


class Measured(Part):
    """What the test samples give where exits are used in one way; `macs` is a mean."""

    accuracy: Fraction
    macs: float


class Point(Part):
    """One choice of thresholds, with what it gives on the calibration samples."""

    thresholds: list[Threshold]
    accuracy: Fraction
    macs: float
    exit_shares: list[float]
