"""A network in several threads, and the knob turned while a batch runs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from budget_nets import FORMS, KINDS, digits, with_gates

from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.gate_policy import GatePolicy
from adaptify.runtime.policy import ThresholdPolicy


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


@pytest.mark.parametrize("kind", KINDS)
def test_threads_may_share_a_network(kind: str) -> None:
    model = FORMS["fast"](KINDS[kind]())
    batches = digits().split(8)
    with torch.inference_mode():
        wanted = [model.run(images) for images in batches]
    # From here on, whatever would be of use for some channels is built at once.
    for block in getattr(model, "blocks", ()):
        block.book.eager = True

    def serve(first: int) -> list[bool]:
        places = [(first + step) % len(batches) for step in range(len(batches))]
        with torch.inference_mode():
            return [same(model.run(batches[place]), wanted[place]) for place in places]

    with ThreadPoolExecutor(4) as pool:
        assert all(all(found) for found in pool.map(serve, range(0, len(batches), 2)))
