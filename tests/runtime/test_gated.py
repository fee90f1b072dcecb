"""Gated networks at run time: how they decide, what they are made of, and that they survive the disk."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path

import pytest
import torch
from families import scramble
from gated_nets import DIGITS, close, gated, gated_digits, shake
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import adaptify
from adaptify.data import MemorySplit
from adaptify.data.augment import Augmentation
from adaptify.errors import ModelError, UsageError
from adaptify.graph.trace import trace
from adaptify.runtime.gate_policy import GatePolicy
from adaptify.runtime.gated import Decisions, GatedModel
from adaptify.training.gate_records import BINS, observe_gates

KINDS = list(itertools.product(["independent", "dependent"], ["channel", "layer"]))
kinds = pytest.mark.parametrize(("kind", "granularity"), KINDS)


def images(count: int = 6) -> Tensor:
    return torch.randn(count, *DIGITS.input.shape, generator=torch.Generator().manual_seed(1))


def lively(**options: object) -> GatedModel:
    model = gated_digits(**options)
    scramble(model.traced.root)
    return shake(model)


@given(odds=st.lists(st.floats(-20, 20), min_size=1), tau=st.floats(0.001, 0.999))
def test_the_threshold_is_on_the_probability(odds: list[float], tau: float) -> None:
    values = torch.tensor(odds, dtype=torch.float64)
    gates = GatePolicy(tau=tau).decide(values)
    chance = values.sigmoid()
    clear = (chance - tau).abs() > 1e-9
    assert torch.equal(gates[clear], (chance > tau).to(gates)[clear])


def test_a_probability_at_the_threshold_closes() -> None:
    assert GatePolicy(tau=0.5).decide(torch.zeros(1)).tolist() == [0]


def test_extreme_thresholds_open_or_close_everything() -> None:
    odds = torch.tensor([-1e4, -1.0, 0.0, 1.0, 1e4])
    assert GatePolicy(tau=0.0).decide(odds).tolist() == [1] * 5
    assert GatePolicy(tau=1.0).decide(odds).tolist() == [0] * 5
    assert GatePolicy("always_on").decide(odds).tolist() == [1] * 5


def test_stochastic_gates_are_open_as_often_as_they_say() -> None:
    torch.manual_seed(0)
    odds = torch.tensor([-2.0, 0.0, 1.5]).expand(20_000, 3)
    share = GatePolicy("stochastic").decide(odds).mean(0)
    assert share.tolist() == pytest.approx(odds[0].sigmoid().tolist(), abs=0.015)


@pytest.mark.parametrize("tau", [-0.1, 1.1, math.nan])
def test_thresholds_are_probabilities(tau: float) -> None:
    with pytest.raises(UsageError, match="is no probability"):
        GatePolicy(tau=tau)


@pytest.mark.parametrize(("mode", "runs"), [("threshold", 5), ("always_on", 2), ("stochastic", 0)])
def test_only_draws_make_an_ensemble(mode: str, runs: int) -> None:
    with pytest.raises(UsageError, match="make no ensemble"):
        GatePolicy(mode, runs=runs)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", [GatePolicy(), GatePolicy("stochastic", runs=5), GatePolicy("always_on")])
def test_policies_survive_json(policy: GatePolicy) -> None:
    assert GatePolicy.from_json(policy.to_json()) == policy


@kinds
def test_the_policy_decides_in_evaluation(kind: str, granularity: str) -> None:
    model = lively(kind=kind, granularity=granularity)
    with torch.no_grad():
        for policy in (GatePolicy(tau=0.3), GatePolicy(tau=0.7), GatePolicy("always_on")):
            model.policy = policy
            found = model.run(images())
            assert torch.equal(found.gates, policy.decide(found.odds))
            assert torch.equal(model(images()), found.logits)
            assert tuple(found.logits.shape) == (6, 10)
    rows = 6 if kind == "dependent" else None
    shape = (model.gate_cost.gates,) if rows is None else (rows, model.gate_cost.gates)
    assert tuple(found.gates.shape) == shape
    assert model.per_sample == (kind == "dependent")


def test_more_gates_close_at_higher_thresholds() -> None:
    model = lively(kind="dependent")
    counts = []
    for tau in (0.0, 0.2, 0.5, 0.8, 1.0):
        model.policy = GatePolicy(tau=tau)
        with torch.no_grad():
            counts.append(float(model.run(images()).gates.sum()))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 6 * model.gate_cost.gates
    assert counts[-1] == 0


def test_an_ensemble_is_the_mean_of_its_draws() -> None:
    model = lively()
    model.policy = GatePolicy("stochastic")
    with torch.no_grad():
        torch.manual_seed(3)
        draws = [model.run(images()) for _ in range(4)]
        torch.manual_seed(3)
        model.policy = GatePolicy("stochastic", runs=4)
        found = model.run(images())
    assert len({tuple(draw.gates.tolist()) for draw in draws}) > 1
    mean = torch.stack([draw.logits.softmax(1) for draw in draws]).mean(0)
    torch.testing.assert_close(found.logits.softmax(1), mean)
    torch.testing.assert_close(found.gates, torch.stack([draw.gates for draw in draws]).mean(0))


@kinds
def test_training_draws_gates_and_says_what_they_were(kind: str, granularity: str) -> None:
    model = lively(kind=kind, granularity=granularity).train()
    found = model(images())
    assert isinstance(found, Decisions)
    assert found.gates.shape == found.odds.shape
    assert found.gates.requires_grad
    # The mode of the policy is of no concern to training.
    model.policy = GatePolicy("always_on")
    torch.manual_seed(0)
    drawn = torch.stack([model(images()).gates.detach().mean() for _ in range(8)])
    assert 0.1 < float(drawn.mean()) < 0.95


@kinds
def test_the_state_is_that_of_the_checkpoint_and_gates(kind: str, granularity: str) -> None:
    torch.manual_seed(0)
    plain = DIGITS.build().eval()
    model = gated(trace(plain, DIGITS.input.shape), kind=kind, granularity=granularity)
    state = model.state_dict()
    own = plain.state_dict()
    assert [name for name in state if not name.startswith("gates.")] == list(own)
    assert all(state[name].data_ptr() == tensor.data_ptr() for name, tensor in own.items())
    gates = {name for name, _ in model.named_parameters() if name.startswith("gates.")}
    assert len(gates) == len(model.gate_parameters) > 0
    assert {id(p) for p in model.gate_parameters} == {
        id(p) for name, p in model.named_parameters() if name in gates
    }
    backbone = model.backbone().root
    assert [name for name, _ in backbone.named_parameters()] == [name for name, _ in plain.named_parameters()]


def test_a_network_with_gates_of_its_own_name_keeps_it() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gates = nn.Conv2d(3, 8, 3, padding=1)
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.gates(x)).mean((2, 3)))

    model = gated(trace(Named().eval(), (3, 8, 8)), filters=2)
    names = set(model.state_dict())
    assert {"gates.weight", "gates.bias", "head.weight", "head.bias"} < names
    (ours,) = model.gate_parameters
    assert ours.numel() == 2 * model.gate_cost.gates == 2 * 3


@kinds
def test_it_is_saved_and_loaded_bit_for_bit(kind: str, granularity: str, tmp_path: Path) -> None:
    model = lively(kind=kind, granularity=granularity)
    model.policy = GatePolicy(tau=0.4)
    adaptify.save(model, tmp_path / "model.safetensors")
    again = adaptify.load(tmp_path / "model.safetensors")
    assert isinstance(again, GatedModel)
    assert not again.training
    assert again.policy == model.policy
    assert again.sites == model.sites
    assert list(again.state_dict()) == list(model.state_dict())
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    with torch.no_grad():
        ours, theirs = again.run(images()), model.run(images())
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@kinds
def test_copies_are_independent(kind: str, granularity: str) -> None:
    model = lively(kind=kind, granularity=granularity)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model(images())
        assert torch.equal(twin(images()), before)
        for parameter in twin.gate_parameters:
            parameter.fill_(1.0)
        for name, parameter in twin.named_parameters():
            if not name.startswith("gates."):
                parameter.mul_(0.5)
        twin.policy = GatePolicy("always_on")
        assert torch.equal(model(images()), before)
        assert not torch.equal(twin(images()), before)
        # The tensors of a copy are those that its graph runs on.
        assert torch.equal(twin(images()), twin.decide(images(), torch.ones_like).logits)
    mine = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    assert not mine & {id(tensor) for tensor in twin.state_dict(keep_vars=True).values()}
    assert twin.decider_macs == model.decider_macs


def test_a_network_without_scores_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 3))
    with pytest.raises(ModelError, match="does not return one score per class"):
        gated(trace(net.eval(), (3, 8, 8)))


def split(count: int = 10) -> MemorySplit:
    pixels = torch.randint(0, 255, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    labels = torch.arange(count) % 10
    return MemorySplit(
        lambda report: pixels, labels, torch.arange(count), DIGITS.input, Augmentation(flip=False)
    )


@pytest.mark.parametrize("batch_size", [3, 10])
def test_records_say_what_became_of_samples_and_gates(batch_size: int) -> None:
    model = lively(kind="dependent")
    records = observe_gates(model, split(), batch_size=batch_size)
    (batch, labels), *_ = split().batches(10)
    with torch.no_grad():
        found = model.run(batch)
    assert torch.equal(records.labels, labels)
    assert torch.equal(records.predictions, found.logits.argmax(1))
    # What each sample uses of the network, and what deciding costs it.
    macs = model.gate_cost(found.gates.long()) + model.decider_macs
    assert records.macs.tolist() == macs.tolist()
    assert len(set(macs.tolist())) > 1
    assert records.kept == pytest.approx(float(macs.double().mean()) / model.cost.total)
    torch.testing.assert_close(records.open, found.gates.double().mean(0))
    torch.testing.assert_close(
        records.probabilities, found.odds.double().sigmoid().mean(0), atol=1e-6, rtol=0
    )
    assert int(records.histogram.sum()) == 10 * model.gate_cost.gates
    assert len(records.histogram) == BINS
    assert len(records.site_open) == len(records.site_probabilities) == len(model.sites)
    start = 0
    for site, share in zip(model.sites, records.site_open, strict=True):
        assert share == pytest.approx(float(found.gates[:, start : start + site.gates].mean()))
        start += site.gates


def test_records_of_gates_that_look_at_nothing_count_each_once() -> None:
    model = close(gated_digits(granularity="layer"), "layer2.0")
    records = observe_gates(model, split(), batch_size=4)
    assert records.open.tolist() == [1, 0, 1]
    assert int(records.histogram.sum()) == 3
    assert records.polarised == 1
    assert records.macs.tolist() == [model.gate_cost.without(1)] * 10
    assert records.accuracy == pytest.approx(float((records.predictions == records.labels).double().mean()))
