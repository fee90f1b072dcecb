"""The knob at run time: a budget chooses the policy, for every kind of network that decides by sample."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from budget_nets import FORMS, KINDS, with_exits, with_gates, with_saliences
from gated_nets import DIGITS, gated_digits, shake
from torch import Tensor

import adaptify
from adaptify.data import open_data
from adaptify.errors import TargetError, UsageError
from adaptify.graph.trace import trace
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.budget import Budget
from adaptify.runtime.gate_policy import GatePolicy, SaliencePolicy
from adaptify.runtime.optimize import optimize
from adaptify.runtime.policy import ThresholdPolicy


def mean_macs(model: Any, images: Tensor) -> float:
    """What a sample takes under the policy of `model`, on average."""
    with torch.no_grad():
        found = model.run(images)
    if isinstance(model, AdaptiveModel):
        return float(torch.tensor(model.exit_macs(model.policy))[found.exit_index].double().mean())
    return float((model.gate_cost((found.gates > 0).long()) + model.decider_macs).double().mean())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_chooses_the_most_accurate_point_within_it(kind: str, form: str) -> None:
    model = FORMS[form](KINDS[kind]())
    points = model.frontier.points
    assert len(points) >= 3
    base = model.frontier.base_macs
    split = open_data("digits", input=DIGITS.input).test
    images, _ = next(iter(split.batches(len(split))))
    spent = []
    for point in points:
        fraction = point.macs / base
        model.budget = fraction
        chosen = next(item for item in points if item.macs / base == model.budget)
        assert chosen.accuracy == max(item.accuracy for item in points if item.macs <= point.macs)
        # The frontier is of these images: they take what it says, less the heads of exits never taken.
        spent.append(mean_macs(model, images))
        assert spent[-1] <= point.macs * 1.001
        assert spent[-1] == pytest.approx(chosen.macs, rel=0.02)
    assert spent == sorted(spent)
    assert spent[-1] > 1.2 * spent[0]
    model.budget = Budget(points[0].macs, absolute=True)
    assert model.budget == points[0].macs / base
    model.budget = points[1].macs * 1.0001
    assert mean_macs(model, images) <= points[1].macs * 1.001


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_is_told_and_changes_nothing(kind: str) -> None:
    model = KINDS[kind]()
    before = model.policy
    cheapest = model.frontier.points[0].macs / model.frontier.base_macs
    with pytest.raises(TargetError, match=r"down to 0\.1% of the network's") as caught:
        model.budget = 0.001
    assert f"The cheapest point keeps {cheapest:.1%}" in caught.value.hint
    for nonsense in (0, -0.5, math.nan, math.inf, 45, "half", None):
        with pytest.raises(UsageError, match="a budget of"):
            model.budget = nonsense
    assert model.policy is before


def test_a_network_without_frontier_says_so() -> None:
    independent = gated_digits(kind="independent")
    fresh = shake(gated_digits(kind="dependent"))
    handmade = AdaptiveModel(trace(DIGITS.build().eval(), DIGITS.input.shape))
    for model in (independent, fresh, handmade, optimize(fresh)):
        assert model.frontier is None
        assert model.budget is None
        with pytest.raises(UsageError, match="carries no frontier"):
            model.budget = 0.5


def test_the_budget_of_a_policy_that_is_on_no_frontier_is_not_known() -> None:
    model = with_gates()
    model.budget = 0.6
    assert model.budget is not None
    model.policy = model.policy.with_tau(0.123)
    assert model.budget is None
    exits = with_exits()
    exits.policy = ThresholdPolicy((0.1, 0.2), "margin")
    assert exits.budget is None


def test_copies_move_by_themselves() -> None:
    model = with_gates()
    fast = optimize(model)
    fast.budget = model.frontier.points[0].macs
    assert fast.budget != model.budget
    assert model.policy == GatePolicy()


@pytest.mark.parametrize("kind", ["exits", "gates"])
def test_the_artifact_carries_frontier_and_choice(kind: str, tmp_path: Path) -> None:
    model = KINDS[kind]()
    middle = model.frontier.points[len(model.frontier.points) // 2].macs
    model.budget = middle
    adaptify.save(model, tmp_path / "model.safetensors")
    again = adaptify.load(tmp_path / "model.safetensors")
    assert again.frontier == model.frontier
    assert again.policy == model.policy
    assert again.budget == model.budget == pytest.approx(middle / model.cost.total)
    again.budget = 2
    assert again.budget > model.budget


def test_a_frontier_is_of_the_policy_that_it_names() -> None:
    """What the network decides by now says nothing about the thresholds of the frontier."""
    exits = with_exits()
    exits.policy = ThresholdPolicy((0.5, 0.5), "confidence")
    exits.budget = 0.9
    assert exits.policy.score == "margin"
    gates = with_gates()
    gates.policy = GatePolicy("always_on")
    gates.budget = 0.9
    assert gates.policy == GatePolicy(tau=gates.policy.tau)


def test_frontiers_of_older_files_are_of_the_policy_of_the_plan() -> None:
    model = with_exits()
    assert model.plan is not None
    assert model.plan.frontier is not None
    older = {key: value for key, value in model.plan.frontier.items() if key != "policy"}
    model.plan = model.plan.model_copy(update={"frontier": older})
    model.budget = 0.9
    assert model.policy.score == "margin"
    assert model.budget is not None
    model.plan = model.plan.model_copy(update={"policy": None})
    assert model.frontier is None


@pytest.mark.parametrize(
    ("value", "budget"),
    [
        (0.6, Budget(0.6)),
        (2, Budget(2.0)),
        (np.float32(0.5), Budget(0.5)),
        (1000, Budget(1000.0, absolute=True)),
        (45e6, Budget(45e6, absolute=True)),
    ],
)
def test_a_number_is_a_fraction_or_macs(value: Any, budget: Budget) -> None:
    assert Budget.of(value) == budget
    assert budget.fraction(90e6) == (budget.amount / 90e6 if budget.absolute else budget.amount)


def test_a_budget_of_more_than_everything_is_met() -> None:
    model = with_exits()
    model.budget = 1e12
    best = max(point.accuracy for point in model.frontier.points)
    chosen = [p for p in model.frontier.points if p.macs / model.cost.total == model.budget]
    assert chosen[0].accuracy == best


def test_saliences_have_a_floor() -> None:
    model = with_saliences()
    assert isinstance(model.policy, SaliencePolicy)
    assert model.policy.tau == 0
    taus = [point.thresholds[0] for point in model.frontier.points]
    assert taus == sorted(taus, reverse=True)
    assert 0.0 in taus
