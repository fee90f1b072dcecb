"""The search behind the accuracy / MACs frontier: which threshold vectors are worth a look.

For one price of a MAC, in accuracy, the best thresholds maximise accuracy - price * mean MACs. With
all thresholds but one fixed that is a problem in one variable, solved exactly by sorting the scores
of a gate and summing what each sample that reaches it would gain by leaving there. Going from gate to
gate until nothing changes solves it for all (the d-gate paper, section 3, also tunes gate after gate), and
bisecting over the price visits the corners of the frontier. Between the corners, the curves along
single thresholds, which the one-variable problems give for free, fill the gaps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# The bisection over the price stops where neighbouring corners are this near, in MACs (fraction of
# the range) and in accuracy: what lies between is left to the curves.
_RESOLUTION = 0.02
# How often the curves around the frontier so far are followed; a third time changes nothing to speak of.
_ROUNDS = 2
# Cuts tried per gate; with more distinct scores, neighbours share a level (0.05% of the samples).
_MAX_LEVELS = 2000
# Less than this many correct answers is rounding, not progress.
_SLACK = 1e-6

_Floats = NDArray[np.float64]
_Cuts = tuple[int, ...]


class ThresholdSearch:
    """Visits good threshold vectors and remembers what each of them gives.

    Args:
        scores: (S, N) score of every sample at every gate, S >= 1; -inf never leaves there.
        correct: (S + 1, N) whether the prediction of each gate, and (last) of the output, is right.
        macs: (S + 1,) MACs spent on a sample that leaves at each gate, and (last) at the output.

    A threshold is held as a cut: how many levels of a gate's scores leave there, from the highest
    level (0) on. A visit is a row: MACs and correct answers, both summed over the samples (so that
    they are exact), then the S cuts.
    """

    def __init__(self, scores: _Floats, correct: NDArray[np.bool_], macs: _Floats) -> None:
        self._correct = correct.astype(np.float64)
        # What every sample spends cancels out of all comparisons; without it sums are more exact.
        self._macs = np.broadcast_to((macs - macs[0])[:, None], correct.shape)
        levels = [_levels(row) for row in scores]
        self._level = np.stack([level for level, _ in levels])
        self._limits = [limits for _, limits in levels]
        self._visited: list[_Floats] = []
        self._rows: dict[_Cuts, _Floats] = {}  # of the cuts whose surroundings were visited

    def run(self, count: int) -> _Floats:
        """Search along the price of a MAC, then around what that found.

        Returns:
            (P, S) thresholds of at most `count` Pareto-optimal visits, evenly spread, ascending in MACs.
        """
        self._bisect()
        for _ in range(_ROUNDS):
            for row in self._frontier(count):
                self._visit_around(_cuts(row))
        cuts = self._frontier(count)[:, 2:].astype(np.intp)
        return np.stack([limits[cut] for limits, cut in zip(self._limits, cuts.T, strict=True)], axis=1)

    def _frontier(self, count: int) -> _Floats:
        self._visited = [_pareto(np.vstack(self._visited))]
        return _spread(self._visited[0], count)

    def _bisect(self) -> None:
        """Optimise for prices from "accuracy first" to "leave at once", halving where gaps are wide."""
        macs, samples = self._macs[:, 0], self._correct.shape[1]
        steps = np.diff(macs)
        never = (0,) * len(self._limits)
        always = [(*never[:g], len(limits) - 1, *never[g + 1 :]) for g, limits in enumerate(self._limits)]
        # One correct answer outweighs all MACs; then one step of MACs outweighs a correct answer.
        high = self._optimise(0.5 / max(samples * (macs[-1] - macs[0]), 1.0), [never, *always])
        low = self._optimise(2.0 / min(steps[steps > 0], default=1.0), [never])
        near = _RESOLUTION * np.array([high[0] - low[0], samples])
        pending = [(low, high)]
        while pending:
            low, high = pending.pop()
            cost, gain = high[:2] - low[:2]
            if (cost <= near[0] and gain <= near[1]) or min(cost, gain) <= 0:
                continue
            price = gain / cost
            corner = self._optimise(price, [_cuts(low), _cuts(high)])
            if corner[1] - price * corner[0] > low[1] - price * low[0] + _SLACK:  # above the chord
                pending += [(low, corner), (corner, high)]

    def _optimise(self, price: float, starts: Sequence[_Cuts]) -> _Floats:
        """The best row for a price (correct answers per MAC) that is found from the given starts."""
        worth = self._correct - price * self._macs
        # Gate after gate can stop short where two thresholds must change together: both directions are
        # tried from every start, and the best result counts.
        ends = [self._ascend(worth, start, forward) for start in starts for forward in (True, False)]
        return max(map(self._visit_around, ends), key=lambda row: float(row[1] - price * row[0]))

    def _ascend(self, worth: _Floats, start: _Cuts, forward: bool) -> _Cuts:
        """Cuts whose summed worth no change of a single cut improves."""
        cuts, value = list(start), -math.inf
        while True:
            before = value
            for gate in range(len(cuts)) if forward else reversed(range(len(cuts))):
                totals = self._totals(worth, cuts, gate)
                cuts[gate] = int(totals.argmax())
                value = float(totals[cuts[gate]])
            if value <= before + _SLACK:
                return tuple(cuts)
            forward = not forward

    def _visit_around(self, cuts: _Cuts) -> _Floats:
        """Remember what every cut of each single gate gives; return the row of `cuts` itself."""
        if cuts not in self._rows:
            for gate, cut in enumerate(cuts):
                spent = self._totals(self._macs, cuts, gate)
                right = self._totals(self._correct, cuts, gate)
                rows = np.empty((len(spent), 2 + len(cuts)))
                rows[:, 0], rows[:, 1], rows[:, 2:] = spent, right, cuts
                rows[:, 2 + gate] = np.arange(len(spent))
                self._rows[cuts] = rows[cut].copy()
                self._visited.append(_pareto(rows))
        return self._rows[cuts]

    def _totals(self, worth: _Floats, cuts: Sequence[int], gate: int) -> _Floats:
        """Worth (S + 1, N) of where each sample leaves, summed over samples, for every cut of one gate."""
        value = worth[-1]
        for later in range(len(cuts) - 1, gate, -1):
            value = np.where(self._level[later] < cuts[later], worth[later], value)
        gains = worth[gate] - value
        for earlier in range(gate - 1, -1, -1):
            leaves = self._level[earlier] < cuts[earlier]
            gains = np.where(leaves, 0.0, gains)
            value = np.where(leaves, worth[earlier], value)
        by_level = np.bincount(self._level[gate], weights=gains, minlength=len(self._limits[gate]))
        by_level[1:] = by_level[:-1].cumsum()  # the lowest level holds those that can never leave
        by_level[0] = 0.0
        total: _Floats = by_level + value.sum()
        return total


def _cuts(row: _Floats) -> _Cuts:
    return tuple(int(cut) for cut in row[2:])


def _levels(scores: _Floats) -> tuple[NDArray[np.intp], _Floats]:
    """Group scores (N,) into levels that leave together, the highest first.

    Returns:
        The level of each sample (N,), and the threshold (L + 1,) of the cut behind the first 0 to L
        levels. Equal scores are in one level; level L holds -inf, which never leaves.
    """
    order = np.argsort(-scores, kind="stable")
    values = scores[order]
    following = np.append(values[1:], -math.inf)
    ends = np.flatnonzero(values > following)  # the last sample of each run of equal scores
    if len(ends) > _MAX_LEVELS:
        ends = ends[np.linspace(0, len(ends) - 1, _MAX_LEVELS).round().astype(np.intp)]
    level = np.empty(len(scores), dtype=np.intp)
    level[order] = np.searchsorted(ends, np.arange(len(scores)))
    return level, np.append(math.inf, between(following[ends], values[ends]))


def between(below: _Floats, above: _Floats) -> _Floats:
    """Thresholds t with below < t <= above, in the middle, or at `above` where there is no middle.

    They are float32 numbers where possible, because that is how the runtime compares scores.
    """
    with np.errstate(over="ignore"):
        middle = ((below + above) / 2).astype(np.float32).astype(np.float64)
    return np.where((middle > below) & (middle <= above), middle, above)


def _pareto(rows: _Floats) -> _Floats:
    """The rows that no other row beats in MACs and correct answers, ascending in both."""
    rows = rows[np.lexsort((-rows[:, 1], rows[:, 0]))]
    best_before = np.maximum.accumulate(np.append(-math.inf, rows[:-1, 1]))
    best: _Floats = rows[rows[:, 1] > best_before]
    return best


def _spread(rows: _Floats, count: int) -> _Floats:
    """At most `count` of the rows of a frontier, evenly spaced along it; the ends stay."""
    if len(rows) <= count:
        return rows
    steps = np.abs(np.diff(rows[:, :2], axis=0))
    length = np.append(0.0, np.cumsum((steps / steps.sum(axis=0)).sum(axis=1)))
    wanted = np.linspace(0.0, length[-1], count)
    picked: _Floats = rows[np.unique(np.searchsorted(length, wanted).clip(max=len(rows) - 1))]
    return picked
