"""The frontier of gates: every point is what running the network under its threshold gives."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from gated_nets import DIGITS, gated_digits, shake
from torch import Tensor

from adaptify.data import Data, open_data
from adaptify.runtime.frontier import OperatingPoint
from adaptify.runtime.gate_policy import GatePolicy
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.optimize import optimize
from adaptify.training import gate_frontier
from adaptify.training.gate_frontier import _levels, _pareto, sweep_gates
from adaptify.training.gate_records import observe_gates


@pytest.fixture(scope="module")
def data() -> Data:
    """The embedded digits."""
    return open_data("digits", input=DIGITS.input)


def model_with(tau: float = 0.5, **options: object) -> GatedModel:
    """Gates that are open and closed as chance will have it."""
    model = shake(gated_digits(kind="dependent", **options))
    model.policy = GatePolicy(tau=tau)
    return model


def always_three(images: Tensor) -> Tensor:
    """A network that knows one digit."""
    return torch.eye(10)[3].expand(len(images), -1)


@pytest.mark.parametrize("granularity", ["channel", "layer"])
def test_points_are_what_running_the_network_gives(granularity: str, data: Data) -> None:
    model = model_with(granularity=granularity)
    frontier = sweep_gates(model, always_three, data.holdout, batch_size=50)
    assert model.policy == GatePolicy()
    assert frontier.policy == GatePolicy().to_json()
    assert frontier.base_accuracy == float((data.holdout.labels == 3).double().mean())
    assert frontier.base_macs == model.cost.total
    assert len(frontier.points) >= 4
    for point in frontier.points:
        (tau,) = point.thresholds
        model.policy = GatePolicy(tau=tau)
        seen = observe_gates(model, data.holdout)
        assert point.accuracy == seen.accuracy
        assert point.macs == pytest.approx(float(seen.macs.mean()), rel=1e-12)
        assert point.exit_shares == ()


def test_the_fast_form_gives_the_same(data: Data) -> None:
    model = model_with()
    found = sweep_gates(optimize(model), always_three, data.holdout).points
    wanted = sweep_gates(model, always_three, data.holdout).points
    taus = [item.thresholds[0] for item in wanted]
    assert [item.thresholds[0] for item in found] == pytest.approx(taus, rel=1e-4)
    assert [item.macs for item in found] == pytest.approx([item.macs for item in wanted], rel=1e-3)
    assert [item.accuracy for item in found] == pytest.approx([item.accuracy for item in wanted], abs=0.01)


@pytest.mark.parametrize("tau", [0.0, 0.2, 0.97, 1.0])
def test_the_threshold_of_the_policy_is_always_there(tau: float, data: Data) -> None:
    frontier = sweep_gates(model_with(tau), always_three, data.holdout)
    points = [point for point in frontier.points if point.thresholds == (tau,)]
    assert len(points) == 1
    rest = [point for point in frontier.points if point.thresholds != (tau,)]
    assert [point.macs for point in frontier.points] == sorted(point.macs for point in frontier.points)
    assert all(a.accuracy < b.accuracy for a, b in itertools.pairwise(rest))
    assert len(frontier.points) <= gate_frontier.LEVELS + 1


def test_no_more_samples_are_run_than_allowed(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def watch(images: Tensor) -> Tensor:
        seen.append(images)
        return always_three(images)

    monkeypatch.setattr(gate_frontier, "SAMPLES", 50)
    first = sweep_gates(model_with(), watch, data.train, batch_size=32)
    assert [len(images) for images in seen] == [32, 18]
    # They are not the first ones, which may be of one class, and the same ones every time.
    stored, _ = next(iter(data.train.batches(32)))
    assert not torch.equal(seen[0], stored)
    assert sweep_gates(model_with(), watch, data.train, batch_size=32) == first
    assert all(float(point.accuracy * 50).is_integer() for point in first.points)


def test_levels_close_equal_parts_of_the_macs() -> None:
    openness = torch.rand(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) ** 8
    weights = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    levels = _levels(openness, weights, 5)
    total = float(weights.sum()) * 200
    closed = [float((weights * (openness <= tau)).sum()) / total for tau in levels]
    assert closed == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=0.005)
    assert all((openness != tau).all() for tau in levels)


def test_levels_lie_between_what_gates_say() -> None:
    weights = torch.ones(2, dtype=torch.float64)
    decided = torch.tensor([[0.1, 0.9]], dtype=torch.float64).expand(30, 2)
    assert _levels(decided, weights, 14) == [0.5]
    # Nothing tells gates apart that all say the same, and what is closed at 0 stays closed.
    assert _levels(torch.full((30, 2), 0.3), weights, 14) == []
    assert _levels(torch.zeros(30, 2), weights, 14) == []
    some = torch.tensor([[0.0, 0.2], [0.0, 0.4]], dtype=torch.float64)
    assert _levels(some, weights, 14) == pytest.approx([0.3])


def test_what_is_beaten_is_left_out() -> None:
    def point(tau: float, accuracy: float, macs: float) -> OperatingPoint:
        return OperatingPoint((tau,), accuracy, macs)

    cheap, beaten, good, same_as_good, own = (
        point(0.9, 0.5, 10.0),
        point(0.8, 0.5, 11.0),
        point(0.7, 0.8, 20.0),
        point(0.6, 0.8, 20.0),
        point(0.5, 0.7, 30.0),
    )
    best = point(0.0, 0.9, 40.0)
    points = [best, own, same_as_good, good, beaten, cheap]
    assert _pareto(points, keep=0.5) == (cheap, same_as_good, own, best)
    assert _pareto(points, keep=0.7) == (cheap, good, best)
    assert _pareto(points, keep=math.nan) == (cheap, same_as_good, best)
