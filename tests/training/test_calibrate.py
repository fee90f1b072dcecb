from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptify.errors import UsageError
from adaptify.training.calibrate import OperatingPoint, evaluate_thresholds, search_thresholds

INF = math.inf
Problem = tuple[np.ndarray, np.ndarray, np.ndarray]


def algorithm_1(scores: list, correct: list, macs: list, thresholds: tuple) -> tuple[float, float, list]:
    """The rule itself, sample by sample: exact means of correctness and MACs, and counts per exit."""
    gates, samples = len(thresholds), len(correct[0])
    right, spent, counts = 0, 0.0, [0] * (gates + 1)
    for n in range(samples):
        leaves = next((i for i in range(gates) if scores[i][n] >= thresholds[i]), gates)
        right += bool(correct[leaves][n])
        spent += macs[leaves]
        counts[leaves] += 1
    return right / samples, spent / samples, counts


@st.composite
def problems(draw: st.DrawFn, max_gates: int = 3, max_samples: int = 7) -> Problem:
    gates = draw(st.integers(0, max_gates))
    samples = draw(st.integers(1, max_samples))
    grid = st.sampled_from([-INF, -1.0, -0.5, 0.0, 0.25, 0.3, 1.0, 1.5])  # few values: many ties
    scores = [[draw(grid) for _ in range(samples)] for _ in range(gates)]
    correct = [[draw(st.booleans()) for _ in range(samples)] for _ in range(gates + 1)]
    steps = [draw(st.integers(0, 9)) for _ in range(gates)]
    macs = np.cumsum([draw(st.integers(1, 9)), *steps])
    return np.array(scores).reshape(gates, samples), np.array(correct), macs


def random_problem(rng: np.random.Generator, gates: int, samples: int, *, informed: bool) -> Problem:
    scores = rng.normal(size=(gates, samples)).round(int(rng.integers(0, 3)))
    correct = rng.random((gates + 1, samples)) < np.linspace(0.5, 0.95, gates + 1)[:, None]
    if informed:
        scores = scores + 1.5 * correct[:-1]
    return scores, correct, np.cumsum(rng.integers(1, 10, gates + 1))


def hypervolume(points: list[tuple[float, float]], macs: float, accuracy: float) -> float:
    """Area between a frontier of (macs, accuracy) and the corner (`macs`, `accuracy`)."""
    area, best, previous = 0.0, accuracy, None
    for spent, right in sorted(points):
        if previous is not None:
            area += (spent - previous) * (best - accuracy)
        best, previous = max(best, right), spent
    return area if previous is None else area + (macs - previous) * (best - accuracy)


@given(problems(), st.data())
@settings(max_examples=150, deadline=None)
def test_evaluation_is_algorithm_1(problem: Problem, data: st.DataObject) -> None:
    scores, correct, macs = problem
    thresholds = tuple(
        data.draw(st.sampled_from([-1.0, -0.2, 0.0, 0.25, 1.0, INF])) for _ in range(len(scores))
    )
    point = evaluate_thresholds(scores, correct, macs, thresholds)
    accuracy, spent, counts = algorithm_1(scores.tolist(), correct.tolist(), macs.tolist(), thresholds)

    assert point.accuracy == pytest.approx(accuracy, abs=1e-12)
    assert point.macs == pytest.approx(spent, abs=1e-12)
    assert point.exit_shares == pytest.approx([count / correct.shape[1] for count in counts])


@given(problems())
@settings(max_examples=150, deadline=None)
def test_a_frontier_is_pareto_consistent_and_never_beats_brute_force(problem: Problem) -> None:
    scores, correct, macs = problem
    frontier = search_thresholds(scores, correct, macs, float(macs[-1]))
    points = frontier.points

    never = evaluate_thresholds(scores, correct, macs, (INF,) * len(scores))
    assert points[-1] == never
    assert frontier.base_accuracy == never.accuracy
    early = points[:-1]
    assert all(a.macs < b.macs and a.accuracy < b.accuracy for a, b in itertools.pairwise(early))
    values = [sorted({*row[row > -INF], INF}) for row in scores]
    every = [evaluate_thresholds(scores, correct, macs, t) for t in itertools.product(*values)]
    for point in points:
        accuracy, spent, _ = algorithm_1(scores.tolist(), correct.tolist(), macs.tolist(), point.thresholds)
        assert (point.accuracy, point.macs) == pytest.approx((accuracy, spent), abs=1e-12)
        assert any((p.accuracy, p.macs) == pytest.approx((accuracy, spent), abs=1e-12) for p in every)


def test_tiny_frontiers_cover_what_brute_force_covers() -> None:
    rng = np.random.default_rng(0)
    ratios = []
    for trial in range(120):
        gates = int(rng.integers(1, 4))
        problem = random_problem(rng, gates, int(rng.integers(3, 9)), informed=bool(trial % 2))
        scores, _, macs = problem
        values = [[*sorted(set(row)), INF] for row in scores.tolist()]
        every = [evaluate_thresholds(*problem, t) for t in itertools.product(*values)]
        found = search_thresholds(*problem, float(macs[-1])).points
        corner = float(macs[-1]), min(p.accuracy for p in every)
        best = hypervolume([(p.macs, p.accuracy) for p in every], *corner)
        ours = hypervolume([(p.macs, p.accuracy) for p in found], *corner)
        assert ours <= best + 1e-9
        if best > 0:
            ratios.append(ours / best)

    assert len(ratios) > 100
    assert np.mean(ratios) >= 0.999
    assert np.min(ratios) >= 0.97


def test_one_exit_by_hand() -> None:
    # The gate is right about the three samples it is sure of, and wrong about the last, unsure one.
    frontier = search_thresholds(
        scores=[[0.9, 0.7, 0.5, 0.1]], correct=[[1, 1, 1, 0], [1, 1, 0, 1]], macs=[10, 30], base_macs=28
    )
    assert frontier.base_accuracy == 0.75
    assert frontier.base_macs == 28
    assert frontier.points == (
        OperatingPoint((pytest.approx(0.1),), 0.75, 10.0, (1.0, 0.0)),
        OperatingPoint((pytest.approx(0.3),), 1.0, 15.0, (0.75, 0.25)),
        OperatingPoint((INF,), 0.75, 30.0, (0.0, 1.0)),
    )


def test_two_exits_share_the_work_by_hand() -> None:
    # Sample 0 is clear at the first exit, sample 1 at the second, sample 2 only at the output.
    frontier = search_thresholds(
        scores=[[2.0, 0.5, 0.5], [2.0, 1.5, 0.0]],
        correct=[[1, 0, 0], [1, 1, 0], [1, 1, 1]],
        macs=[1, 2, 4],
        base_macs=4,
    )
    best = next(p for p in frontier.points if p.accuracy == 1.0)
    assert best.thresholds == (1.25, 0.75)
    assert best.macs == pytest.approx(7 / 3)
    assert best.exit_shares == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_equal_scores_leave_together() -> None:
    frontier = search_thresholds([[0.5, 0.5, 0.5]], [[1, 1, 0], [1, 1, 1]], [1, 2], 2)

    assert {p.exit_shares for p in frontier.points} == {(1.0, 0.0), (0.0, 1.0)}


def test_minus_infinity_never_leaves() -> None:
    frontier = search_thresholds([[-INF, 1.0, -INF]], [[1, 1, 1], [0, 0, 0]], [1, 2], 2)

    assert {p.exit_shares[0] for p in frontier.points} == {0.0, 1 / 3}
    assert all(p.thresholds[0] > -INF for p in frontier.points)


def test_thresholds_decide_alike_in_float32() -> None:
    rng = np.random.default_rng(1)
    near = np.float32(1) + np.arange(40, dtype=np.float32) * np.finfo(np.float32).eps  # neighbours
    scores = np.stack([rng.permutation(near), rng.permutation(near)])
    correct = rng.random((3, 40)) < 0.7
    for point in search_thresholds(scores, correct, [1, 2, 3], 3).points:
        wide = scores.astype(np.float64) >= np.array(point.thresholds)[:, None]
        narrow = scores >= np.array(point.thresholds, dtype=np.float32)[:, None]
        assert (wide == narrow).all()


def test_without_exits_there_is_one_point() -> None:
    frontier = search_thresholds(np.empty((0, 2)), [[True, False]], [7], 7)

    assert frontier.points == (OperatingPoint((), 0.5, 7.0, (1.0,)),)


def test_tensors_are_welcome() -> None:
    torch = pytest.importorskip("torch")
    scores, correct = torch.tensor([[0.2, 0.8]]), torch.tensor([[True, True], [True, False]])

    assert search_thresholds(scores, correct, [1, 2], 2).points[0].macs == 1.0
    assert evaluate_thresholds(scores, correct, [1, 2], [0.5]).macs == 1.5


def test_many_samples_give_at_most_a_hundred_points_without_wide_gaps_in_seconds() -> None:
    rng = np.random.default_rng(2)
    samples, gates = 50_000, 3
    ease = rng.normal(size=samples)
    noise = rng.normal(size=(gates, samples))
    scores = ease + noise
    correct = np.vstack([ease + 0.5 * noise > [[-0.2], [-0.7], [-1.1]], [ease > -1.6]])
    macs = np.array([1.0e8, 2.2e8, 3.1e8, 4.3e8])

    started = time.process_time()
    frontier = search_thresholds(scores, correct, macs, 4.2e8)
    seconds = time.process_time() - started

    assert seconds < 6  # about 1.5 s; room for slow machines
    assert 60 <= len(frontier.points) <= 100
    spent = np.array([p.macs for p in frontier.points[:-1]])
    right = np.array([p.accuracy for p in frontier.points[:-1]])
    assert (np.diff(spent) < 0.04 * np.ptp(spent)).all()
    assert (np.diff(right) < 0.04 * np.ptp(right)).all()


@pytest.mark.parametrize(
    ("scores", "correct", "macs", "message"),
    [
        ([[0.1, math.nan]], [[1, 1], [1, 1]], [1, 2], "sample 1 at exit 0 is nan"),
        ([[0.1, INF]], [[1, 1], [1, 1]], [1, 2], "sample 1 at exit 0 is inf"),
        ([[0.1, 0.2]], [[1, 1]], [1, 2], r"correct \(1, 2\)"),
        ([[0.1, 0.2]], [[1, 1], [1, 1]], [1, 2, 3], r"macs \(3,\)"),
        ([[0.1, 0.2]], [[1, 1], [1, 1]], [2, 1], "ascend"),
        ([[0.1, 0.2]], [[1, 1], [1, 1]], [1, math.nan], "ascend"),
        (np.empty((1, 0)), np.empty((2, 0)), [1, 2], "no samples"),
    ],
)
def test_what_cannot_be_calibrated_is_named(
    scores: object, correct: object, macs: object, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        search_thresholds(scores, correct, macs, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("thresholds", "message"), [([0.1], "1 thresholds for 2"), ([0.1, math.nan], "number")]
)
def test_thresholds_must_fit_the_exits(thresholds: list[float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate_thresholds([[0.1], [0.2]], [[1], [1], [1]], [1, 2, 3], thresholds)
