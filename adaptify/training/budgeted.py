"""Budgeted batch: thresholds under which given shares of the samples leave at each exit.

After MSDNet (Huang et al., 2018) and BoostNet (Yu et al., 2023): of all samples the share q_k, proportional
to p^k, leaves at exit k, so that the mean MACs are sum_k q_k C_k with C_k the MACs up to exit k. One number p
spans everything from "all leave at the first exit" (p = 0) to "all run to the end" (p = inf). At each exit,
the surest of the samples that are still there leave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adaptify.errors import TargetError
from adaptify.runtime.frontier import Frontier, OperatingPoint
from adaptify.text import quantity
from adaptify.training.calibrate import MAX_POINTS, Samples
from adaptify.training.threshold_search import between

# Beyond p = e^40 or e^-40, all samples but a share of 1e-17 leave at one end.
_STEEPEST = 40.0
_HALVINGS = 45
# Shares are sums of float64: that much more than a whole number of samples is that number.
_ROUNDING = 1e-9

_Floats = NDArray[np.float64]


def exit_quotas(ratio: float, exits: int) -> _Floats:
    """(exits + 1,) the share of all samples that leaves at each exit and at the output: q_k ~ ratio^k.

    Args:
        ratio: p, from 0 to infinity.
        exits: Number of exits, without the output.
    """
    if ratio in (0.0, math.inf):
        shares = np.zeros(exits + 1)
        shares[0 if ratio == 0 else -1] = 1.0
        return shares
    powers = math.log(ratio) * np.arange(exits + 1)
    shares = np.exp(powers - powers.max())
    normalised: _Floats = shares / shares.sum()
    return normalised


def ratio_for(macs: ArrayLike, budget: float) -> float:
    """The largest p whose quotas cost no more than `budget`, found by bisection: the cost grows with p.

    Args:
        macs: (S + 1,) MACs of a sample that leaves at each exit and at the output, ascending.
        budget: Mean MACs of a sample.

    Raises:
        TargetError: Even the first exit costs more.
    """
    costs = np.asarray(macs, dtype=np.float64)
    if budget < costs[0]:
        raise TargetError(
            f"a budget of {quantity(budget)} MACs is less than the first exit costs, {quantity(costs[0])}",
            "Ask for more MACs, or put an exit earlier in the network.",
        )
    if budget >= costs[-1]:
        return math.inf
    low, high = -_STEEPEST, _STEEPEST
    if costs @ exit_quotas(math.exp(low), len(costs) - 1) >= budget:
        return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if costs @ exit_quotas(math.exp(middle), len(costs) - 1) > budget:
            high = middle
        else:
            low = middle
    return math.exp(low)


def threshold_of_top(scores: _Floats, count: int) -> float:
    """The threshold that the `count` highest of scores (K,) reach, and more only where scores are equal."""
    ranked = np.sort(scores[scores > -math.inf])[::-1]
    if count <= 0 or not len(ranked):
        return math.inf
    last = ranked[min(count, len(ranked)) - 1]
    below = ranked[ranked < last]
    return float(between(below[:1] if len(below) else np.array([-math.inf]), np.array([last]))[0])


def quota_thresholds(scores: ArrayLike, quotas: ArrayLike) -> tuple[float, ...]:
    """The thresholds under which the samples leave by quota.

    Where a quota is no whole number of samples, or scores are equal, so many leave that no more than planned
    are left for later exits: the mean MACs do not exceed those of the quotas.

    Args:
        scores: (S, N); -inf never leaves.
        quotas: (S + 1,) share of all samples for each exit and the output.
    """
    rows = np.asarray(scores, dtype=np.float64)
    count = rows.shape[1]
    gone = np.ceil(count * np.cumsum(np.asarray(quotas, dtype=np.float64))[:-1] - _ROUNDING)
    staying = np.ones(count, dtype=np.bool_)
    thresholds = []
    for row, wanted in zip(rows, gone, strict=True):
        missing = int(wanted) - (count - int(staying.sum()))
        thresholds.append(threshold_of_top(row[staying], missing))
        staying &= row < thresholds[-1]
    return tuple(thresholds)


def lower_thresholds(samples: Samples, thresholds: Sequence[float]) -> tuple[float, ...]:
    """Lower thresholds, the first exit first, as far as no right answer is lost by it on the whole.

    BoostNet cuts the flat tail of its curves so: on held-out samples, a threshold is not raised where that
    does not improve the network.

    Returns:
        Thresholds with at least the accuracy of the given ones, and at most their MACs.
    """
    found = list(thresholds)
    for gate, row in enumerate(samples.scores):
        exits = samples.exits(found)
        later = samples.exits([*([math.inf] * (gate + 1)), *found[gate + 1 :]])
        here = np.flatnonzero((exits >= gate) & (row > -math.inf))  # those that could leave at this exit
        here = here[np.argsort(-row[here], kind="stable")]
        gains = samples.correct[gate, here].astype(np.int64) - samples.correct[later[here], here]
        gained = np.append(0, gains.cumsum())  # by letting the first 0, 1, ... samples leave
        ranked = row[here]
        now = int((ranked >= found[gate]).sum())
        ends = np.append(ranked[:-1] > ranked[1:], True)  # equal scores leave together
        good = np.flatnonzero(ends & (gained[1:] >= gained[now])) + 1 if len(here) else here
        if len(good) and good[-1] > now:
            found[gate] = threshold_of_top(ranked, int(good[-1]))
    return tuple(found)


def sweep_quotas(
    scores: ArrayLike,
    correct: ArrayLike,
    macs: ArrayLike,
    base_macs: float,
    *,
    budget: float | None = None,
) -> Frontier:
    """The accuracy / mean MACs curve of budgeted batch, without what costs more and is no better.

    Args:
        scores: As of `search_thresholds`.
        correct: Likewise.
        macs: Likewise.
        base_macs: Likewise.
        budget: Mean MACs that one point of the curve is made for.

    Raises:
        UsageError: As `search_thresholds`.
    """
    samples = Samples.checked(scores, correct, macs)
    never = samples.evaluate((math.inf,) * samples.gates)
    budgets = np.linspace(samples.macs[0], samples.macs[-1], MAX_POINTS - 2).tolist() if samples.gates else []
    if budget is not None and samples.gates and budget >= samples.macs[0]:
        budgets.append(budget)
    points = []
    for value in budgets:
        quotas = exit_quotas(ratio_for(samples.macs, value), samples.gates)
        thresholds = quota_thresholds(samples.scores, quotas)
        points.append(samples.evaluate(lower_thresholds(samples, thresholds)))
    better = [p for p in _ascending(points) if (p.macs, p.accuracy) != (never.macs, never.accuracy)]
    return Frontier((*better, never), base_accuracy=never.accuracy, base_macs=float(base_macs))


def _ascending(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """The points that no cheaper one is as accurate as, ascending in MACs."""
    found: list[OperatingPoint] = []
    for point in sorted(points, key=lambda p: (p.macs, -p.accuracy)):
        if not found or point.accuracy > found[-1].accuracy:
            found.append(point)
    return found
