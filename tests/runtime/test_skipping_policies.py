"""The fast form under policies: same decisions, MACs and accuracy as the network that it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from families import scramble
from gated_nets import DIGITS, gated_digits, shake
from skipping_nets import CPU, WAYS, cifar, images_for, place, row_difference, set_cost
from torch import Tensor

from adaptify.data import Data, open_data
from adaptify.errors import ModelError
from adaptify.gates.gumbel import DependentGates
from adaptify.gates.salience import SalienceNet
from adaptify.runtime.gate_policy import GatePolicy, Policy, SaliencePolicy
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.optimize import optimize
from adaptify.runtime.skipping.model import SkippingModel
from adaptify.training.gate_records import observe_gates


@pytest.fixture(scope="module")
def data() -> Data:
    """The embedded digits."""
    return open_data("digits", input=DIGITS.input)


def lively(**options: Any) -> GatedModel:
    """Gates each of which is open for some images and closed for about as many."""
    model = gated_digits(kind="dependent", **options)
    scramble(model.traced.root)
    shake(model)
    images = open_data("digits", input=DIGITS.input).test.batches(128)
    batch, _ = next(iter(images))
    start = 0
    # In the order of the network: what a gate says depends on those before it.
    for decider in model.deciders:
        assert isinstance(decider.module, DependentGates)
        with torch.no_grad():
            odds = model.run(batch).odds[:, start : start + decider.gates]
            # Between two images, so that rounding moves none of them over the threshold.
            decider.module.bias[:, 0, 1] -= odds.quantile(0.5, 0)
        start += decider.gates
    return model


def salient() -> GatedModel:
    """Saliences of all sizes."""
    model = place(cifar(), "saliences")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for decider in model.deciders:
            assert isinstance(decider.module, SalienceNet)
            decider.module.linear.weight.normal_(0, 0.5, generator=generator)
            decider.module.linear.bias.normal_(0.4, 0.4, generator=generator)
    return model


MODELS: Mapping[str, Any] = {
    "layers": lambda: lively(granularity="layer"),
    "layers by stage": lambda: lively(granularity="layer", per="stage"),
    "channels": lambda: lively(),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_size", [64, 256])
def test_what_is_observed_is_the_same(name: str, batch_size: int, data: Data) -> None:
    model = MODELS[name]()
    fast = SkippingModel(model, CPU)
    set_cost(fast, WAYS["apart"])
    wanted = observe_gates(model, data.test, batch_size=batch_size, by_class=True)
    found = observe_gates(fast, data.test, batch_size=batch_size, by_class=True)
    assert torch.equal(found.labels, wanted.labels)
    assert torch.equal(found.predictions, wanted.predictions)
    assert torch.equal(found.macs, wanted.macs)
    assert float(wanted.macs.std()) > 0
    assert (found.accuracy, found.kept) == (wanted.accuracy, wanted.kept)
    assert torch.equal(found.open, wanted.open)
    assert found.site_open == wanted.site_open
    assert found.opened_by_class is not None
    assert wanted.opened_by_class is not None
    assert torch.equal(found.opened_by_class, wanted.opened_by_class)
    torch.testing.assert_close(found.probabilities, wanted.probabilities, rtol=1e-4, atol=1e-6)
    assert int(found.histogram.sum()) == int(wanted.histogram.sum())


def same(fast: SkippingModel, model: GatedModel, images: Tensor) -> Tensor:
    """Hold both against each other under the policy that they have; return the gates."""
    with torch.no_grad():
        torch.manual_seed(5)
        wanted = model.run(images)
        torch.manual_seed(5)
        found = fast.run(images)
        torch.manual_seed(5)
        # A program that was built in between computes the same in another order.
        assert row_difference(fast(images), found.logits) <= 1e-5
    torch.testing.assert_close(found.gates, wanted.gates, rtol=1e-4, atol=1e-5)
    assert row_difference(found.logits, wanted.logits) <= 1e-5
    return found.gates


GATE_POLICIES = [
    GatePolicy(),
    GatePolicy(tau=0.0),
    GatePolicy(tau=0.8),
    GatePolicy(tau=1.0),
    GatePolicy("always_on"),
    GatePolicy("stochastic"),
    GatePolicy("stochastic", runs=3),
]


@pytest.mark.parametrize("name", MODELS)
def test_the_policy_can_be_replaced_between_batches(name: str) -> None:
    model = MODELS[name]()
    model.policy = GatePolicy(tau=0.4)
    fast = SkippingModel(model, CPU)
    assert fast.policy == model.policy
    seen = []
    for policy in (*GATE_POLICIES, *GATE_POLICIES[::-1]):
        fast.policy = model.policy = policy
        seen.append(float(same(fast, model, images_for(model, 5)).mean()))
    assert seen[1] == seen[4] == 1
    assert seen[3] == 0
    assert seen[::-1] == seen
    assert len(set(seen)) > 4


def test_the_threshold_of_saliences_can_be_replaced() -> None:
    model = salient()
    fast = SkippingModel(model, CPU)
    means = []
    for tau in (0.0, 0.3, 0.6, 1.0, 0.3):
        policy: Policy = SaliencePolicy(tau)
        fast.policy = model.policy = policy
        means.append(float(same(fast, model, images_for(model, 5)).mean()))
    assert means[0] > means[1] > means[2] > means[3] == 0
    assert means[4] == means[1]


def test_draws_follow_the_seed() -> None:
    model = lively()
    model.policy = GatePolicy("stochastic")
    fast = SkippingModel(model, CPU)
    images = images_for(model, 4)
    draws = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        draws.append(fast.run(images).gates)
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


def test_an_ensemble_is_the_mean_of_its_draws() -> None:
    model = lively()
    model.policy = GatePolicy("stochastic", runs=4)
    fast = SkippingModel(model, CPU)
    images = images_for(model, 4)
    torch.manual_seed(3)
    runs = fast.runs(images)
    torch.manual_seed(3)
    found = fast.run(images)
    assert len(runs) == 4
    mean = torch.stack([run.logits.softmax(1) for run in runs]).mean(0)
    torch.testing.assert_close(found.logits.softmax(1), mean)
    torch.testing.assert_close(found.gates, torch.stack([run.gates for run in runs]).mean(0))


def test_costs_and_sites_are_those_of_the_network() -> None:
    model = salient()
    fast = SkippingModel(model, CPU)
    assert fast.sites == model.sites
    assert fast.gate_cost is model.gate_cost
    assert fast.cost.total == model.cost.total
    assert fast.decider_macs == model.decider_macs
    assert fast.num_classes == model.num_classes
    assert fast.per_sample


@pytest.mark.parametrize("granularity", ["channel", "layer"])
def test_gates_that_are_the_same_for_all_are_frozen_instead(granularity: str) -> None:
    with pytest.raises(ModelError, match="leave nothing to decide at run time") as caught:
        optimize(gated_digits(kind="independent", granularity=granularity))
    assert "adaptify prune" in caught.value.hint


def test_the_fast_form_cannot_be_trained() -> None:
    fast = SkippingModel(lively(), CPU)
    with pytest.raises(ModelError, match="cannot be trained"):
        fast.train()
    assert fast.eval() is fast
    assert not fast.training
    assert not any(parameter.requires_grad for parameter in fast.parameters())
