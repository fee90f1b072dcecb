"""Choosing exit thresholds: which accuracy at which mean cost, from scores computed once.

The rule is Algorithm 1 of the d-gate paper: a sample leaves at the first gate i whose score is at
least t_i. What the score is does not matter here: the largest distance to a class boundary, or the
largest softmax probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adaptify.errors import UsageError
from adaptify.runtime.frontier import Frontier, OperatingPoint
from adaptify.training.threshold_search import ThresholdSearch

__all__ = ["Frontier", "OperatingPoint", "Samples", "evaluate_thresholds", "search_thresholds"]

MAX_POINTS = 100
"""Of a frontier."""

_Floats = NDArray[np.float64]
_Bools = NDArray[np.bool_]


def search_thresholds(scores: ArrayLike, correct: ArrayLike, macs: ArrayLike, base_macs: float) -> Frontier:
    """Find the accuracy / mean MACs frontier over all threshold vectors. The network is never run.

    Args:
        scores: (S, N) score of every sample at every gate; -inf never leaves there.
        correct: (S + 1, N) whether the prediction of each gate, and (last) of the output, is right.
        macs: (S + 1,) MACs spent on a sample that leaves at each gate, and (last) at the output,
            with all gates passed on the way.
        base_macs: MACs of the network without gates.

    Returns:
        At most 100 points, well spread; thresholds lie midway between neighbouring scores.

    Raises:
        UsageError: Shapes do not fit, a score is NaN or +inf, or MACs do not ascend.
    """
    samples = Samples.checked(scores, correct, macs)
    never = samples.evaluate((math.inf,) * samples.gates)
    points = []
    if samples.gates:
        search = ThresholdSearch(samples.scores, samples.correct, samples.macs)
        found = map(samples.evaluate, map(tuple, search.run(MAX_POINTS - 1).tolist()))
        points = [p for p in found if (p.macs, p.accuracy) != (never.macs, never.accuracy)]
    return Frontier((*points, never), base_accuracy=never.accuracy, base_macs=float(base_macs))


def evaluate_thresholds(
    scores: ArrayLike, correct: ArrayLike, macs: ArrayLike, thresholds: Sequence[float]
) -> OperatingPoint:
    """Accuracy, mean MACs and exit shares under given thresholds; arguments as `search_thresholds`.

    Raises:
        UsageError: As `search_thresholds`; or a threshold is missing or NaN.
    """
    samples = Samples.checked(scores, correct, macs)
    if len(thresholds) != samples.gates:
        raise UsageError(
            f"{len(thresholds)} thresholds for {samples.gates} exits",
            "Give one threshold per exit, in order.",
        )
    if any(math.isnan(t) for t in thresholds):
        raise UsageError("a threshold is not a number", "Use inf for an exit that is never taken.")
    return samples.evaluate(tuple(float(t) for t in thresholds))


@dataclass(frozen=True)
class Samples:
    """What thresholds are chosen on, as `search_thresholds` takes it.

    Attributes:
        scores: (S, N).
        correct: (S + 1, N).
        macs: (S + 1,).
    """

    scores: _Floats
    correct: _Bools
    macs: _Floats

    @classmethod
    def checked(cls, scores: ArrayLike, correct: ArrayLike, macs: ArrayLike) -> Samples:
        """Make arrays of the arguments.

        Raises:
            UsageError: As `search_thresholds`.
        """
        s = np.asarray(scores, dtype=np.float64)
        c = np.asarray(correct, dtype=np.bool_)
        m = np.asarray(macs, dtype=np.float64)
        if s.ndim != 2 or c.shape != (s.shape[0] + 1, s.shape[1]) or m.shape != (s.shape[0] + 1,):
            raise UsageError(
                f"scores {s.shape}, correct {c.shape} and macs {m.shape} do not belong together",
                "S gates and N samples need scores (S, N), correct (S + 1, N) and macs (S + 1,).",
            )
        if s.shape[1] == 0:
            raise UsageError("no samples to choose thresholds on", "Hold out some data for calibration.")
        if not (s < np.inf).all():
            gate, sample = (int(i) for i in np.argwhere(~(s < np.inf))[0])
            raise UsageError(
                f"the score of sample {sample} at exit {gate} is {s[gate, sample]}",
                "Scores must be numbers: check the gate's weights and the input images for NaN.",
            )
        if not (np.isfinite(m).all() and (np.diff(m) >= 0).all()):
            raise UsageError(
                f"the MACs up to each exit do not ascend: {m.tolist()}",
                "An exit that takes more than going on to the next one cannot pay: leave it out.",
            )
        return cls(s, c, m)

    @property
    def gates(self) -> int:
        """S."""
        return len(self.scores)

    @property
    def count(self) -> int:
        """N."""
        return int(self.scores.shape[1])

    def exits(self, thresholds: Sequence[float]) -> NDArray[np.intp]:
        """(N,) the gate at which each sample leaves; S: the output."""
        limits = np.asarray(thresholds, dtype=np.float64)[:, None]
        leaves = np.vstack([self.scores >= limits, np.ones_like(self.correct[:1])])
        found: NDArray[np.intp] = leaves.argmax(axis=0)  # the first gate that lets the sample leave
        return found

    def evaluate(self, thresholds: tuple[float, ...]) -> OperatingPoint:
        """What `thresholds`, one per gate, give."""
        exits = self.exits(thresholds)
        counts = np.bincount(exits, minlength=self.gates + 1)
        return OperatingPoint(
            thresholds=thresholds,
            accuracy=float(self.correct[exits, np.arange(self.count)].sum() / self.count),
            macs=float(counts @ self.macs / self.count),
            exit_shares=tuple((counts / self.count).tolist()),
        )
