"""Promises: a drop in accuracy that is exceeded with a small probability only, after finitely many samples.

Learn then Test (Angelopoulos et al., 2021): every choice of thresholds is a hypothesis, "the drop is larger
than allowed"; choices whose hypothesis a valid test rejects are promised. The choices are tested in an order
that was fixed without the samples of the test, from the safest to the cheapest, and the first that is not
rejected ends the sequence: so each is tested at the full level, and a promise is wrong no oftener than that.

Of N samples, only the whole network gets some right (lost, with probability a), only the network with exits
gets others right (gained, with probability b): the drop is a - b. Exact binomial limits (Clopper and Pearson,
1934) bound both: a from above with three quarters of the risk, b from below with the rest. Exits change few
predictions, and a bound for any loss in [-1, 1], such as Hoeffding's or Bentkus's, would need many times the
samples; one on a alone would take what is gained for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptify.errors import TargetError, UsageError
from adaptify.runtime.frontier import Frontier, OperatingPoint
from adaptify.text import whole
from adaptify.training.budgeted import threshold_of_top
from adaptify.training.calibrate import Samples

METHOD = "learn then test, fixed sequence, Clopper-Pearson limits of lost and gained"

# Share of the risk that is spent on what is lost: it matters alone where nothing is gained.
_LOST = 0.75
# Of those that leave under the most accurate thresholds, the shares that leave under safer ones.
_CAUTIOUS = (0.1, 0.25, 0.5, 0.75)
_MOST_SAMPLES = 10_000_000
_HALVINGS = 60


@dataclass(frozen=True)
class Promise:
    """What is promised of an operating point, and the test that it rests on.

    Attributes:
        max_drop: Points of top-1 that are lost at most, against the same network without leaving early.
        confidence: Probability, over the draw of the held-out samples, that the promise is true.
        samples: Held-out samples that it was tested on; none of them had a part in choosing thresholds.
        lost: How many of them only the whole network gets right.
        gained: How many of them only the network with exits gets right.
        tested: How many choices of thresholds were tested, this one among them.
        method: The test.
    """

    max_drop: float
    confidence: float
    samples: int
    lost: int
    gained: int
    tested: int
    method: str = METHOD

    @property
    def drop(self) -> float:
        """The drop on the samples of the test, in points."""
        return 100 * (self.lost - self.gained) / self.samples

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {**asdict(self), "drop": self.drop}


def halves(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut N samples in two at random: positions to choose thresholds on, and positions to test the choice on.

    Args:
        count: N, at least 2.
        seed: The same seed gives the same halves on every machine.

    Returns:
        (N // 2,) and (N - N // 2,) positions, ascending, together all of them.

    Raises:
        UsageError: There are fewer than two samples.
    """
    if count < 2:
        raise UsageError(
            f"{count} held-out samples cannot be cut in two", "Hold out more images with --holdout."
        )
    # Its stream is the same in all versions of numpy.
    order = np.random.RandomState(seed % 2**32).permutation(count).astype(np.int64)
    return np.sort(order[: count // 2]), np.sort(order[count // 2 :])


def safest_first(frontier: Frontier, samples: Samples) -> list[OperatingPoint]:
    """The choices of thresholds that spend less than the network, in the order in which they are tested.

    They are the points of the frontier, the most accurate and most expensive one first; before it, its exits
    with thresholds that only the surest of those that leave there reach.

    Args:
        frontier: What was found on `samples`.
        samples: Those that thresholds are chosen on.
    """
    *points, _ = frontier.points
    cautious: list[OperatingPoint] = []
    if points:
        left = samples.exits(points[-1].thresholds)
        rows = [row[left == gate] for gate, row in enumerate(samples.scores)]
        for share in _CAUTIOUS:
            thresholds = (threshold_of_top(row, math.ceil(share * len(row))) for row in rows)
            cautious.append(samples.evaluate(tuple(thresholds)))
    return [point for point in (*cautious, *reversed(points)) if point.macs < frontier.base_macs]


def promised_point(
    points: Sequence[OperatingPoint], samples: Samples, max_drop: float, confidence: float
) -> tuple[OperatingPoint, Promise]:
    """The last of a sequence of choices of which a drop in accuracy can be promised.

    Args:
        points: Choices of thresholds, safest first, made without any of `samples`.
        samples: What the promise is tested on: drawn as the samples are that it is for.
        max_drop: Points of top-1 that may be lost.
        confidence: Probability with which the promise is to be true, in (0, 1).

    Returns:
        The point as it was given, and the promise.

    Raises:
        TargetError: So much cannot be promised of any choice, or not of the first one.
    """
    check_samples(samples.count, max_drop, confidence)
    alone = samples.correct[-1]
    kept: tuple[OperatingPoint, Promise] | None = None
    failed: Promise | None = None
    for tested, point in enumerate(points, start=1):
        right = samples.correct[samples.exits(point.thresholds), np.arange(samples.count)]
        lost, gained = int((alone & ~right).sum()), int((~alone & right).sum())
        found = Promise(max_drop, confidence, samples.count, lost, gained, tested)
        if not drop_is_below(max_drop / 100, lost, gained, samples.count, 1 - confidence):
            failed = found
            break
        kept = point, found
    if kept is None:
        raise TargetError(_refusal(max_drop, confidence), _advice(failed))
    return kept


def check_samples(count: int, max_drop: float, confidence: float) -> None:
    """Refuse a promise that no outcome on `count` samples could support.

    Raises:
        TargetError: Even if nothing is lost, more are needed.
    """
    least = samples_needed(max_drop / 100, 1 - confidence)
    if least is None:
        raise TargetError(
            _refusal(max_drop, confidence),
            "That takes a drop of more than 0 points: allow one with --max-drop.",
        )
    if count < least:
        raise TargetError(
            _refusal(max_drop, confidence),
            f"It is tested on half of the held-out images, {whole(count)}; even without a loss that takes "
            f"{whole(least)}, so {whole(2 * least)} in all. Hold out more with --holdout, or allow more.",
        )


def drop_is_below(most: float, lost: int, gained: int, count: int, risk: float) -> bool:
    """Whether samples show that the drop in accuracy is at most `most`.

    Args:
        most: The drop, as a fraction.
        lost: Of the samples, those that only the whole network gets right.
        gained: Those that only the network with exits gets right.
        count: Number of samples.
        risk: The probability with which a larger drop may be taken for a smaller one.
    """
    # Upper limit of a <= most + lower limit of b, without computing the upper limit.
    rate = most + _lower_limit(gained, count, (1 - _LOST) * risk)
    return rate > 0 and _at_most(lost, count, rate) <= _LOST * risk


def samples_needed(most: float, risk: float, lost: float = 0.0, gained: float = 0.0) -> int | None:
    """How many samples show that the drop is at most `most`, where these shares are lost and gained.

    Args:
        most: The drop, as a fraction.
        risk: As of `drop_is_below`.
        lost: Share of the samples that is lost.
        gained: Share of the samples that is gained.

    Returns:
        The number, or None where no number suffices, or more than ten million are needed.
    """
    if lost - gained >= most:
        return None

    def enough(count: int) -> bool:
        return drop_is_below(most, math.ceil(lost * count), math.floor(gained * count), count, risk)

    high = 1
    while not enough(high):
        high *= 2
        if high > _MOST_SAMPLES:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _refusal(max_drop: float, confidence: float) -> str:
    return f"a drop of at most {max_drop:g} points cannot be promised with {100 * confidence:g}% confidence"


def _advice(safest: Promise | None) -> str:
    if safest is None:
        return (
            "No choice of thresholds spends less than the network: train better exits, or put them earlier."
        )
    count = safest.samples
    seen = f"The safest thresholds lost {safest.lost} and gained {safest.gained} of {whole(count)} samples"
    needed = samples_needed(
        safest.max_drop / 100, 1 - safest.confidence, safest.lost / count, safest.gained / count
    )
    if needed is None:
        return f"{seen}: at that rate no number of samples is enough. Allow more, or train better exits."
    return (
        f"{seen}: at that rate it takes about {whole(2 * needed)} held-out images. "
        "Hold out more with --holdout, or allow more."
    )


def _at_most(successes: int, count: int, rate: float) -> float:
    """P(X <= successes) for X ~ Binomial(count, rate)."""
    if successes >= count or rate <= 0:
        return 1.0
    if rate >= 1:
        return 0.0
    i = np.arange(1, successes + 1, dtype=np.float64)
    ratios = np.log((count - i + 1) / i) + math.log(rate) - math.log1p(-rate)
    logs = count * math.log1p(-rate) + np.append(0.0, ratios.cumsum())
    return min(float(np.exp(logs).sum()), 1.0)


def _lower_limit(successes: int, count: int, risk: float) -> float:
    """The rate below which `successes` or more of `count` have a probability of at most `risk`."""
    if successes == 0:
        return 0.0
    low, high = 0.0, successes / count
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - _at_most(successes - 1, count, middle) <= risk else (low, middle)
    return low
