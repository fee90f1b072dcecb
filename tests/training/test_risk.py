from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptify.errors import TargetError, UsageError
from adaptify.runtime.frontier import Frontier
from adaptify.training.budgeted import exit_quotas, quota_thresholds
from adaptify.training.calibrate import Samples
from adaptify.training.risk import drop_is_below, halves, promised_point, safest_first, samples_needed

MACS = (30.0, 50.0, 75.0, 100.0)


def population(count: int, seed: int) -> Samples:
    """Three exits and the output, each right on what is easy enough for it, and sure of it on the whole."""
    rng = np.random.default_rng(seed)
    difficulty = rng.random(count)
    power = np.array([0.75, 0.84, 0.9, 0.94])[:, None]
    correct = rng.normal(difficulty, 0.1, (4, count)) < power
    scores = power[:-1] - difficulty + rng.normal(0, 0.12, (3, count))
    return Samples.checked(scores, correct, MACS)


def take(samples: Samples, rows: np.ndarray) -> Samples:
    return Samples(samples.scores[:, rows], samples.correct[:, rows], samples.macs)


def drop_of(samples: Samples, thresholds: tuple[float, ...]) -> float:
    """In points."""
    whole = samples.evaluate((math.inf,) * samples.gates)
    return 100 * (whole.accuracy - samples.evaluate(thresholds).accuracy)


def binomial_at_most(successes: int, count: int, rate: float) -> float:
    return sum(math.comb(count, i) * rate**i * (1 - rate) ** (count - i) for i in range(successes + 1))


def quick_frontier(samples: Samples) -> Frontier:
    """Thresholds by quota: not the best, and quickly found."""
    quotas = (exit_quotas(ratio, samples.gates) for ratio in np.geomspace(0.2, 20, 30))
    points = [samples.evaluate(quota_thresholds(samples.scores, shares)) for shares in quotas]
    never = samples.evaluate((math.inf,) * samples.gates)
    return Frontier((*points, never), never.accuracy, never.macs)


def test_a_promise_is_kept_with_the_confidence_that_it_names_and_saves_macs() -> None:
    """200 held-out sets of 2,000 from 20,000 samples, of which the true drop is known."""
    every, rng = population(20_000, seed=0), np.random.default_rng(1)
    drops, macs = [], []
    for seed in range(200):
        held = take(every, rng.choice(20_000, 2000, replace=False))
        searched, tested = (take(held, rows) for rows in halves(2000, seed))
        points = safest_first(quick_frontier(searched), searched)
        point, promise = promised_point(points, tested, 2.0, 0.95)
        assert promise.samples == 1000
        drops.append(drop_of(every, point.thresholds))
        macs.append(every.evaluate(point.thresholds).macs)
    assert np.mean(np.array(drops) <= 2.0) >= 0.95
    assert np.mean(drops) > 0.5  # and it is not kept by hardly ever leaving
    assert np.mean(macs) < 0.7 * MACS[-1]


def test_a_choice_by_the_drop_on_held_out_samples_is_no_promise() -> None:
    """What the promise is for: on other samples, the drop is larger too often."""
    every, rng = population(20_000, seed=0), np.random.default_rng(1)
    kept = []
    for _ in range(100):
        held = take(every, rng.choice(20_000, 2000, replace=False))
        chosen = quick_frontier(held).choose(max_drop=2.0)
        kept.append(drop_of(every, chosen.thresholds) <= 2.0)
    assert np.mean(kept) < 0.9


@pytest.mark.parametrize(("lost", "gained"), [(0.02, 0.0), (0.03, 0.01), (0.06, 0.04)])
def test_a_drop_as_large_as_the_bound_is_seldom_taken_for_a_smaller_one(lost: float, gained: float) -> None:
    rng, count = np.random.default_rng(0), 1500
    draws = rng.multinomial(count, [lost, gained, 1 - lost - gained], size=500)
    wrong = np.mean([drop_is_below(lost - gained, int(a), int(b), count, 0.1) for a, b, _ in draws])
    assert wrong <= 0.1


@given(st.integers(1, 300), st.floats(0.001, 0.5), st.floats(0.01, 0.3), st.data())
def test_without_gains_the_test_is_the_binomial_one(
    count: int, most: float, risk: float, data: st.DataObject
) -> None:
    lost = data.draw(st.integers(0, count))
    tail = binomial_at_most(lost, count, most)
    if abs(tail - 0.75 * risk) > 1e-9:
        assert drop_is_below(most, lost, 0, count, risk) == (tail <= 0.75 * risk)


@given(st.integers(1, 2000), st.floats(0.001, 0.2), st.floats(0.01, 0.3), st.data())
def test_more_lost_or_less_gained_is_never_better(
    count: int, most: float, risk: float, data: st.DataObject
) -> None:
    lost = data.draw(st.integers(1, count))
    gained = data.draw(st.integers(0, count - lost))
    if drop_is_below(most, lost, gained, count, risk):
        assert drop_is_below(most, lost - 1, gained, count, risk)
        assert drop_is_below(most, lost, gained + 1, count, risk)
        assert drop_is_below(most + 0.01, lost, gained, count, risk)


@given(st.floats(0.002, 0.2), st.floats(0.01, 0.3))
def test_the_number_of_samples_that_is_needed_is_the_smallest(most: float, risk: float) -> None:
    needed = samples_needed(most, risk)
    assert needed is not None
    assert drop_is_below(most, 0, 0, needed, risk)
    assert not drop_is_below(most, 0, 0, needed - 1, risk)
    assert needed == pytest.approx(math.log(0.75 * risk) / math.log1p(-most), abs=1.001)


def test_some_rates_need_more_samples_and_some_cannot_be_promised() -> None:
    none, some, both = (
        samples_needed(0.01, 0.05),
        samples_needed(0.01, 0.05, 0.005),
        samples_needed(0.01, 0.05, 0.01, 0.005),
    )
    assert none is not None
    assert some is not None
    assert both is not None
    assert none < some < both
    assert samples_needed(0.01, 0.05, 0.02, 0.01) is None
    assert samples_needed(0.0, 0.05) is None


@given(st.integers(2, 500), st.integers(0, 2**63 - 1))
def test_halves_are_two_parts_of_the_whole(count: int, seed: int) -> None:
    one, other = halves(count, seed)
    assert sorted([*one, *other]) == list(range(count))
    assert 0 <= len(other) - len(one) <= 1
    assert all((again == half).all() for again, half in zip(halves(count, seed), (one, other), strict=True))


def test_halves_depend_on_the_seed() -> None:
    assert not np.array_equal(halves(100, 0)[0], halves(100, 1)[0])
    with pytest.raises(UsageError, match="cannot be cut in two"):
        halves(1, 0)


def by_hand(count: int, *, lost: int, shares: tuple[float, ...] = (0.2, 0.5)) -> tuple[Frontier, Samples]:
    """One exit, which is wrong where it is least sure: on the first `lost` samples. `shares` leave."""
    correct = np.ones((2, count), dtype=np.bool_)
    correct[0, :lost] = False
    samples = Samples.checked(np.linspace(0.0, 1.0, count)[None], correct, (40, 100))
    points = (samples.evaluate((1 - share,)) for share in sorted(shares, reverse=True))
    return Frontier((*points, samples.evaluate((math.inf,))), 1.0, 100.0), samples


def test_points_are_tested_from_safe_to_cheap_and_begin_with_safer_ones() -> None:
    frontier, samples = by_hand(1000, lost=0, shares=(0.2, 0.5, 0.9))
    shares = [point.exit_shares[0] for point in safest_first(frontier, samples)]
    assert shares == pytest.approx([0.02, 0.05, 0.1, 0.15, 0.2, 0.5, 0.9], abs=0.002)


def test_the_sequence_ends_at_the_first_choice_that_fails() -> None:
    frontier, samples = by_hand(1000, lost=300, shares=(0.2, 0.5, 0.69, 0.9, 1.0))
    points = safest_first(frontier, samples)
    point, promise = promised_point(points, samples, 1.0, 0.95)
    assert point.exit_shares[0] == pytest.approx(0.69, abs=0.002)
    assert (promise.tested, promise.lost, promise.gained, promise.samples) == (7, 0, 0, 1000)
    assert promise.drop == 0.0
    # Behind the failure nothing is looked at, however good it is.
    assert promised_point([*points, points[0]], samples, 1.0, 0.95) == (point, promise)


@pytest.mark.parametrize(
    ("count", "lost", "max_drop", "told"),
    [
        (200, 0, 0.5, ["half of the held-out images, 200;", "that takes 656, so 1,312 in all", "--holdout"]),
        (1000, 1000, 0.5, ["lost 20 and gained 0 of 1,000", "no number of samples is enough"]),
        (1000, 984, 0.5, ["lost 4 and gained 0", "at that rate it takes about", "--holdout"]),
        (1000, 0, 0.0, ["allow one with --max-drop"]),
    ],
)
def test_what_cannot_be_promised_is_refused_with_what_it_would_take(
    count: int, lost: int, max_drop: float, told: list[str]
) -> None:
    frontier, samples = by_hand(count, lost=lost)
    with pytest.raises(TargetError, match="cannot be promised with 95% confidence") as caught:
        promised_point(safest_first(frontier, samples), samples, max_drop, 0.95)
    for text in told:
        assert text in (caught.value.hint or "")


def test_choices_that_cost_more_than_the_network_are_not_promised() -> None:
    frontier, samples = by_hand(1000, lost=0)
    costly = Frontier(frontier.points, frontier.base_accuracy, base_macs=30.0)
    with pytest.raises(TargetError, match="cannot be promised") as caught:
        promised_point(safest_first(costly, samples), samples, 1.0, 0.95)
    assert "spends less than the network" in (caught.value.hint or "")
