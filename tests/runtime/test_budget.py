"""The knob at run time: a budget chooses the policy, for every kind of network that decides by sample."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gated_nets import DIGITS, gated_digits, shake
from skipping_nets import place
from torch import Tensor

import adaptify
from adaptify.assembly import assemble
from adaptify.data import open_data
from adaptify.errors import TargetError, UsageError
from adaptify.graph.cost import CostModel
from adaptify.graph.sites import find_exits
from adaptify.graph.trace import trace
from adaptify.plan import PlaceExit, Plan
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.budget import Budget
from adaptify.runtime.gate_policy import GatePolicy, SaliencePolicy
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.optimize import optimize
from adaptify.runtime.policy import ThresholdPolicy
from adaptify.training.calibrate import search_thresholds
from adaptify.training.gate_frontier import sweep_gates
from adaptify.training.records import ExitRecords


def digits() -> Tensor:
    """A batch of the embedded digits."""
    images, _ = next(iter(open_data("digits", input=DIGITS.input).test.batches(64)))
    return images


def with_exits() -> AdaptiveModel:
    """The small network of the digits with two untrained exits and the frontier of these."""
    torch.manual_seed(0)
    traced = trace(DIGITS.build().eval(), DIGITS.input.shape)
    sites = {site.name: site for site in find_exits(traced, CostModel(traced))}
    steps = tuple(
        PlaceExit(site=name, channels=sites[name].channels, classes=10) for name in ("layer1", "layer2")
    )
    model = assemble(traced, steps).eval()
    assert isinstance(model, AdaptiveModel)
    split = open_data("digits", input=DIGITS.input).test
    images, labels = next(iter(split.batches(len(split))))
    with torch.no_grad():
        logits, exits = model.dense(images)
    records = ExitRecords.of(list(exits.values()), logits, labels, "margin")
    frontier = search_thresholds(
        records.scores.numpy(), records.correct.numpy(), model.exit_macs(), model.cost.total
    )
    model.policy = ThresholdPolicy((math.inf, math.inf), "margin")
    model.plan = Plan(
        architecture=DIGITS.to_json(),
        steps=steps,
        policy=model.policy.to_json(),
        frontier={**frontier.to_json(), "policy": model.policy.to_json()},
    )
    return model


def swept(model: GatedModel) -> GatedModel:
    """`model` with a plan that holds what other thresholds give on digits."""
    split = open_data("digits", input=DIGITS.input).test
    whole = AdaptiveModel(model.backbone()).eval()
    frontier = sweep_gates(model, lambda images: whole.run(images).logits, split)
    plan = model.plan or Plan(architecture=DIGITS.to_json())
    model.plan = plan.model_copy(update={"frontier": frontier.to_json(), "policy": model.policy_json()})
    return model


def with_gates() -> GatedModel:
    """The small network of the digits with gates for channels."""
    return swept(shake(gated_digits(kind="dependent")))


def with_masks() -> GatedModel:
    """The same with a mask net."""
    torch.manual_seed(0)
    model = place(trace(DIGITS.build().eval(), DIGITS.input.shape), "masks")
    with torch.no_grad():
        for name, parameter in model.deciders[0].module.named_parameters():
            if name.startswith("linear"):
                parameter.normal_(generator=torch.Generator().manual_seed(3))
    return swept(model)


def with_saliences() -> GatedModel:
    """The same with saliences of all sizes."""
    torch.manual_seed(0)
    model = place(trace(DIGITS.build().eval(), DIGITS.input.shape), "saliences")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for decider in model.deciders:
            for name, parameter in decider.module.named_parameters():
                if name.startswith("linear"):
                    parameter.normal_(0.4 * name.endswith("bias"), 0.4, generator=generator)
    return swept(model)


KINDS: Mapping[str, Callable[[], Any]] = {
    "exits": with_exits,
    "gates": with_gates,
    "masks": with_masks,
    "saliences": with_saliences,
}
FORMS: Mapping[str, Callable[[Any], Any]] = {"trained": lambda model: model, "fast": optimize}


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


def extremes(model: Any) -> tuple[Any, Any]:
    """The policies of the cheapest and of the dearest point, that of the latter in place."""
    points = model.frontier.points
    model.budget = points[0].macs
    cheap = model.policy
    thresholds = points[-1].thresholds
    dear = (
        ThresholdPolicy(thresholds, model.policy.score)
        if isinstance(model, AdaptiveModel)
        else model.policy.with_tau(thresholds[0])
    )
    assert cheap != dear
    model.policy = dear
    return cheap, dear


def same(one: Any, other: Any) -> bool:
    """Whether two runs decided alike, and gave the same but for rounding."""
    return torch.equal(one[-1], other[-1]) and torch.allclose(one.logits, other.logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_keeps_the_policy_that_it_began_with(kind: str, form: str) -> None:
    model = FORMS[form](KINDS[kind]())
    images = digits()
    cheap, dear = extremes(model)
    with torch.no_grad():
        model.policy = cheap
        under_cheap = model.run(images)
        model.policy = dear
        under_dear = model.run(images)
        assert not same(under_cheap, under_dear)
        # Everything that the network computes on the way sets the policy.
        for module in model.modules():
            if module is not model:
                module.register_forward_pre_hook(lambda *_: setattr(model, "policy", cheap))
        found = model.run(images)
        assert model.policy == cheap, "a hook has run"
        assert same(found, under_dear)
        assert same(model.run(images), under_cheap)


@pytest.mark.parametrize("form", FORMS)
def test_an_ensemble_keeps_its_policy_for_all_of_its_runs(form: str) -> None:
    model = FORMS[form](with_gates())
    model.policy = GatePolicy("stochastic", runs=3)
    for module in model.deciders if form == "fast" else (item.module for item in model.deciders):
        target = model.deciders[module] if isinstance(module, str) else module
        target.register_forward_pre_hook(lambda *_: setattr(model, "policy", GatePolicy("always_on")))
    with torch.no_grad():
        runs = model.runs(digits())
    assert model.policy == GatePolicy("always_on")
    assert len(runs) == 3
    assert all(float(run.gates.mean()) < 1 for run in runs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_other_threads_may_turn_the_knob_while_batches_run(kind: str, form: str) -> None:
    model = FORMS[form](KINDS[kind]())
    images = digits()
    budgets = [point.macs for point in model.frontier.points]
    wanted = []
    with torch.inference_mode():
        for budget in budgets:
            model.budget = budget
            wanted.append(model.run(images))
    done = threading.Event()

    def turn() -> None:
        place = 0
        while not done.is_set():
            model.budget = budgets[place % len(budgets)]
            place += 1

    turning = threading.Thread(target=turn)
    turning.start()
    seen = []
    try:
        with torch.inference_mode():
            for count in range(300):
                found = model.run(images)
                seen.append([index for index, one in enumerate(wanted) if same(found, one)])
                if count >= 30 and len({tuple(match) for match in seen}) > 1:
                    break
    finally:
        done.set()
        turning.join()
    assert all(seen), "a batch ran under two policies"
    assert len({tuple(match) for match in seen}) > 1


def test_saliences_have_a_floor() -> None:
    model = with_saliences()
    assert isinstance(model.policy, SaliencePolicy)
    assert model.policy.tau == 0
    taus = [point.thresholds[0] for point in model.frontier.points]
    assert taus == sorted(taus, reverse=True)
    assert 0.0 in taus
