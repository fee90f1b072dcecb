from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptify.errors import TargetError
from adaptify.training.budgeted import (
    exit_quotas,
    lower_thresholds,
    quota_thresholds,
    ratio_for,
    sweep_quotas,
)
from adaptify.training.calibrate import Samples, evaluate_thresholds, search_thresholds

RATIOS = st.one_of(st.sampled_from([0.0, math.inf]), st.floats(1e-3, 1e3))


@st.composite
def problems(draw: st.DrawFn, *, distinct: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (S, N), correct (S + 1, N) and MACs (S + 1,)."""
    exits, count = draw(st.integers(1, 4)), draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = rng.permuted(np.tile(np.arange(count) / 8, (exits, 1)), axis=1)
    if not distinct:
        scores = (scores // 1).astype(np.float64)
    correct = rng.random((exits + 1, count)) < np.linspace(0.4, 0.9, exits + 1)[:, None]
    macs = np.cumsum(rng.integers(1, 100, exits + 1))
    return scores, correct, macs


@given(ratio=RATIOS, exits=st.integers(1, 12))
def test_quotas_are_a_geometric_series(ratio: float, exits: int) -> None:
    shares = exit_quotas(ratio, exits)
    assert shares.sum() == pytest.approx(1)
    if 0 < ratio < math.inf:
        assert shares[1:] == pytest.approx(ratio * shares[:-1])


@given(exits=st.integers(1, 6), low=RATIOS, high=RATIOS, seed=st.integers(0, 99))
def test_a_larger_ratio_costs_more(exits: int, low: float, high: float, seed: int) -> None:
    macs = np.cumsum(np.random.default_rng(seed).integers(0, 100, exits + 1))
    costs = [float(macs @ exit_quotas(ratio, exits)) for ratio in sorted((low, high))]
    assert costs[0] <= costs[1] + 1e-9 * macs[-1]


@given(problem=problems(), ratio=RATIOS)
def test_samples_leave_by_quota(problem: tuple[np.ndarray, ...], ratio: float) -> None:
    scores, correct, macs = problem
    quotas = exit_quotas(ratio, len(scores))
    point = evaluate_thresholds(scores, correct, macs, quota_thresholds(scores, quotas))
    gone = np.cumsum(point.exit_shares)[:-1] * scores.shape[1]
    wanted = np.cumsum(quotas)[:-1] * scores.shape[1]
    assert (gone >= wanted - 1e-6).all()
    assert (gone < wanted + 1).all()


def test_the_surest_of_those_still_there_leave() -> None:
    scores = [[0.1, 0.9, 0.8, 0.2], [0.7, 0.95, 0.9, 0.6]]
    first, second = quota_thresholds(scores, [0.5, 0.25, 0.25])
    assert 0.2 < first <= 0.8
    assert 0.6 < second <= 0.7  # the surest at this exit, samples 1 and 2, have left before


@given(problem=problems(), place=st.floats(0, 1))
def test_a_budget_is_met_to_within_one_sample(problem: tuple[np.ndarray, ...], place: float) -> None:
    scores, correct, macs = problem
    budget = macs[0] + place * (macs[-1] - macs[0])
    quotas = exit_quotas(ratio_for(macs, budget), len(scores))
    point = evaluate_thresholds(scores, correct, macs, quota_thresholds(scores, quotas))
    one_sample = (macs[-1] - macs[0]) / scores.shape[1]
    assert budget - one_sample - 1e-6 <= point.macs <= budget + 1e-6


@given(problem=problems(distinct=False), place=st.floats(0, 1))
def test_equal_scores_do_not_break_a_budget(problem: tuple[np.ndarray, ...], place: float) -> None:
    scores, correct, macs = problem
    budget = macs[0] + place * (macs[-1] - macs[0])
    quotas = exit_quotas(ratio_for(macs, budget), len(scores))
    point = evaluate_thresholds(scores, correct, macs, quota_thresholds(scores, quotas))
    assert point.macs <= budget + 1e-6


def test_the_ends_of_the_budget_are_exact() -> None:
    macs = [10, 20, 40]
    assert exit_quotas(ratio_for(macs, 10), 2).tolist() == [1, 0, 0]
    assert exit_quotas(ratio_for(macs, 40), 2).tolist() == [0, 0, 1]
    assert ratio_for(macs, 1e9) == math.inf
    assert ratio_for(macs, 70 / 3) == pytest.approx(1)  # the same share everywhere
    with pytest.raises(TargetError, match="less than the first exit costs, 10"):
        ratio_for(macs, 9.99)


def test_a_sample_that_never_leaves_goes_to_the_end() -> None:
    scores = np.array([[0.5, -np.inf, 0.3, 0.1]])
    (threshold,) = quota_thresholds(scores, [1.0, 0.0])
    assert (scores[0] >= threshold).tolist() == [True, False, True, True]


@given(problem=problems(), ratio=RATIOS)
def test_lowering_thresholds_costs_no_accuracy_and_no_macs(
    problem: tuple[np.ndarray, ...], ratio: float
) -> None:
    samples = Samples.checked(*problem)
    thresholds = quota_thresholds(samples.scores, exit_quotas(ratio, samples.gates))
    lowered = lower_thresholds(samples, thresholds)
    before, after = samples.evaluate(thresholds), samples.evaluate(lowered)
    assert all(now <= then for now, then in zip(lowered, thresholds, strict=True))
    assert after.accuracy >= before.accuracy
    assert after.macs <= before.macs


def test_the_flat_tail_is_cut() -> None:
    """The second exit is as good as the output: nobody needs to go further."""
    scores = np.array([[0.9, 0.8, 0.2, 0.1], [0.5, 0.6, 0.7, 0.4]])
    correct = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]])
    samples = Samples.checked(scores, correct, [1, 2, 4])
    found = samples.evaluate(lower_thresholds(samples, (math.inf, math.inf)))
    assert found.exit_shares == (0.5, 0.5, 0.0)
    assert found.accuracy == 0.75


@given(problem=problems())
@settings(deadline=None, max_examples=30)
def test_the_curve_ascends_and_ends_at_the_whole_network(problem: tuple[np.ndarray, ...]) -> None:
    scores, correct, macs = problem
    frontier = sweep_quotas(scores, correct, macs, float(macs[-1]))
    points = frontier.points
    assert points[-1].thresholds == (math.inf,) * len(scores)
    assert all(a.macs < b.macs and a.accuracy < b.accuracy for a, b in itertools.pairwise(points[:-1]))
    assert points[0].macs == pytest.approx(macs[0])
    assert max(p.accuracy for p in points) >= frontier.base_accuracy
    for point in points:
        assert evaluate_thresholds(scores, correct, macs, point.thresholds) == point


def test_a_point_is_made_for_the_budget_that_is_asked_for() -> None:
    rng = np.random.default_rng(0)
    scores, macs = rng.random((3, 5000)), [10, 30, 60, 100]
    # An exit is right as often as it is sure, the output always.
    correct = np.vstack([rng.random((3, 5000)) < scores**0.5, np.ones(5000)])
    for budget in (20.0, 33.3, 71.7):
        chosen = sweep_quotas(scores, correct, macs, 100, budget=budget).choose(max_macs=budget / 100)
        assert budget - 2 <= chosen.macs <= budget  # thresholds that gain nothing were lowered
        # One number for all exits cannot beat a search over all thresholds.
        assert (
            chosen.accuracy
            <= search_thresholds(scores, correct, macs, 100).choose(max_macs=budget / 100 + 0.01).accuracy
        )
