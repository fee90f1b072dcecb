"""What holds for exits of every kind: sparse = dense, reload = saved, and what each of them costs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from exit_nets import KINDS, Kind, densely, digits, digits_with, rows_seen, split_evenly, with_exits
from families import Family
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from adaptify import artifact
from adaptify.errors import ModelError, UsageError
from adaptify.gates.exit_head import ExitHead
from adaptify.gates.learned_exit import LearnedExit
from adaptify.graph.trace import trace
from adaptify.plan import BoostExits
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.optimize import optimize
from adaptify.runtime.policy import GATE, ThresholdPolicy


@dataclass(frozen=True)
class Made:
    """A network with exits of a kind, and its fast form; policies are put back."""

    kind: Kind
    model: AdaptiveModel
    fast: AdaptiveModel


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest) -> Made:
    """A network with each kind of exits in turn."""
    model = digits_with(KINDS[request.param])
    return Made(KINDS[request.param], model, optimize(model))


def test_rows_that_leave_get_what_computing_everything_gives(made: Made) -> None:
    wanted, index = densely(made.model, digits(64))
    assert len(index.unique()) == len(made.model.exits) + 1  # some leave everywhere
    for count in (1, 2, 7, 64):
        for runs in (made.model, made.fast):
            with torch.no_grad():
                outcome = runs.run(digits(64)[:count])
            assert torch.equal(outcome.exit_index, index[:count])
            torch.testing.assert_close(outcome.logits, wanted[:count], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("open_exit", [0, 1])
def test_exits_that_are_switched_off_change_nothing_but_who_leaves(
    made: Made, open_exit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = made.model.policy
    limits = tuple(limit if index == open_exit else math.inf for index, limit in enumerate(before.thresholds))
    for runs in (made.model, made.fast):
        monkeypatch.setattr(runs, "policy", replace(before, thresholds=limits))
    wanted, index = densely(made.model, digits(64))
    assert set(index.tolist()) == {open_exit, len(made.model.exits)}
    for runs in (made.model, made.fast):
        with torch.no_grad():
            outcome = runs.run(digits(64))
        assert torch.equal(outcome.exit_index, index)
        torch.testing.assert_close(outcome.logits, wanted, rtol=1e-4, atol=1e-4)


def test_the_fast_form_costs_and_says_the_same(made: Made) -> None:
    model, fast = made.model, made.fast
    with torch.no_grad():
        ours, theirs = model.everything(digits(7)), fast.everything(digits(7))
    for part in ("exits", "gates"):
        assert getattr(ours, part).keys() == getattr(theirs, part).keys()
        for name, tensor in getattr(ours, part).items():
            torch.testing.assert_close(getattr(theirs, part)[name], tensor, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs.logits, ours.logits, rtol=1e-4, atol=1e-4)
    assert fast.exit_macs() == model.exit_macs()
    assert fast.exit_macs(fast.policy) == model.exit_macs(model.policy)
    assert fast.policy == model.policy


def test_what_is_loaded_is_what_was_saved_bit_for_bit(made: Made, tmp_path: Path) -> None:
    model, kind = made.model, made.kind
    artifact.save(model, tmp_path / "model.safetensors")
    again = artifact.load(tmp_path / "model.safetensors")
    assert isinstance(again, AdaptiveModel)
    assert again.policy == model.policy
    assert again.policy.score == kind.score
    assert again.policy.temperatures == kind.temperatures
    assert again.boost == model.boost
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    with torch.no_grad():
        first, second = model.run(digits(64)), again.run(digits(64))
    assert torch.equal(first.exit_index, second.exit_index)
    assert torch.equal(first.logits, second.logits)
    assert again.exit_macs(again.policy) == model.exit_macs(model.policy)


def test_policies_with_gates_and_temperatures_are_kept_as_json() -> None:
    for policy in (
        ThresholdPolicy((0.25, math.inf, -1.5), GATE),
        ThresholdPolicy((0.5, 0.75), "confidence", (0.5, 2.0)),
    ):
        assert ThresholdPolicy.from_json(json.loads(json.dumps(policy.to_json()))) == policy


# --- Over the families ---


def test_fresh_boosted_exits_change_no_output_and_trained_ones_leave_as_dense_ones_do(family: Family) -> None:
    model = with_exits("boostnet", family.traced, family.cost)
    assert model.exits
    assert model.boost == (0.5,) * len(model.exits)
    with torch.no_grad():
        found = model.everything(family.images)
    torch.testing.assert_close(found.logits, family.logits, rtol=1e-5, atol=1e-5)
    for logits in found.exits.values():
        assert not logits.any()
    if family.input_shape[1] > 100:
        return  # what follows takes too long for large images
    # Now with heads that say something: one of the two images leaves at the first exit.
    shake_heads(model)
    with torch.no_grad():
        found = model.everything(family.images)
    first = next(iter(found.exits.values()))
    sure = first.softmax(1).amax(1)
    assert float((sure[0] - sure[1]).abs()) > 1e-6
    limits = (float(sure.double().mean()), *([math.inf] * (len(model.exits) - 1)))
    model.policy = ThresholdPolicy(limits, "confidence")
    leaves = int(sure.argmax())
    with torch.no_grad():
        outcome = model.run(family.images)
    assert outcome.exit_index.tolist() == [0 if row == leaves else len(model.exits) for row in range(2)]
    wanted = torch.stack([first[row] if row == leaves else found.logits[row] for row in range(2)])
    torch.testing.assert_close(outcome.logits, wanted, rtol=1e-4, atol=1e-4)


def shake_heads(model: AdaptiveModel) -> None:
    generator = torch.Generator().manual_seed(0)
    for item in model.exits:
        assert isinstance(item.head, ExitHead)
        with torch.no_grad():
            item.head.linear.weight.normal_(generator=generator)


def test_tokens_have_linear_heads_and_no_convolutions() -> None:
    torch.manual_seed(0)
    vit = VisionTransformer(32, 16, num_layers=4, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10)
    traced = trace(vit.eval(), (3, 32, 32))
    model = with_exits("boostnet", traced)
    assert len(model.exits) == 2
    assert model.exit_macs()[0] < 0.7 * model.cost.total
    for method, head in (
        ("boostnet", "convolutional"),
        ("gumbel_exits", "convolutional"),
        ("gumbel_exits", "linear"),  # its gates have convolutions
    ):
        with pytest.raises(ModelError, match=r"yields no feature map \(N, C, H, W\)") as caught:
            with_exits(method, traced, head=head)
        assert "gates.head=linear" in caught.value.hint


# --- What learned exits cost, and what runs ---


class Toy(nn.Module):
    """Three convolutions of 4 filters on 3 x 8 x 8 images, the second and third with stride 2; 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.three = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 5) of (N, 3, 8, 8)."""
        x = torch.relu(self.three(torch.relu(self.two(torch.relu(self.one(x))))))
        return self.linear(x.mean((2, 3)))


def toy(method: str, **options: object) -> AdaptiveModel:
    torch.manual_seed(0)
    return with_exits(method, trace(Toy().eval(), (3, 8, 8)), sites=("one", "two"), **options)


ONE, TWO, THREE, LINEAR = 64 * 27 * 4, 16 * 36 * 4, 4 * 36 * 4, 4 * 5
# With 2 filters: convolutions on 8 x 8 and 4 x 4, and one layer on 4 x 4 averages.
GATES = (64 * 9 * 4 * 2 + 64 * 9 * 2 * 2 + 32, 16 * 9 * 4 * 2 + 16 * 9 * 2 * 2 + 32)
HEADS = (16 * 9 * 4 * 2 + 4 * 9 * 2 * 2 + 10, 4 * 9 * 4 * 2 + 1 * 9 * 2 * 2 + 10)
NEVER = math.inf


def test_who_leaves_at_a_learned_exit_pays_gate_and_classifier_who_passes_the_gate_only() -> None:
    model = toy("gumbel_exits", width=2)
    assert [tuple(macs) for macs in model.head_macs] == list(zip(HEADS, GATES, strict=True))
    assert model.exit_macs(ThresholdPolicy((0.0, 0.0), GATE)) == (
        ONE + GATES[0] + HEADS[0],
        ONE + GATES[0] + TWO + GATES[1] + HEADS[1],
        ONE + GATES[0] + TWO + GATES[1] + THREE + LINEAR,
    )
    # An exit that is switched off computes neither.
    off = model.exit_macs(ThresholdPolicy((NEVER, 0.0), GATE))
    assert off[1:] == (ONE + TWO + GATES[1] + HEADS[1], ONE + TWO + GATES[1] + THREE + LINEAR)
    # Where predictions decide, gates are not asked, and heads are what is passed.
    by_confidence = model.exit_macs(ThresholdPolicy((0.5, 0.5), "confidence"))
    assert by_confidence == (ONE + HEADS[0], ONE + TWO + sum(HEADS), ONE + TWO + THREE + LINEAR + sum(HEADS))


def test_ordinary_exits_pay_every_head_they_pass_and_boosted_ones_even_closed_heads() -> None:
    open_, closed = ThresholdPolicy((0.5, 0.5), "confidence"), ThresholdPolicy((NEVER, 0.5), "confidence")
    plain = toy("boostnet", ensemble="none", head="convolutional", width=2)
    boosted = toy("boostnet", head="convolutional", width=2)
    wanted = (ONE + HEADS[0], ONE + TWO + sum(HEADS), ONE + TWO + THREE + LINEAR + sum(HEADS))
    assert plain.exit_macs(open_) == boosted.exit_macs(open_) == boosted.exit_macs(closed) == wanted
    assert plain.exit_macs(closed)[1:] == (ONE + TWO + HEADS[1], ONE + TWO + THREE + LINEAR + HEADS[1])


def test_what_is_counted_is_what_runs() -> None:
    model = toy("gumbel_exits", width=2)
    batch = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    split_evenly(model, batch, GATE)
    _, index = densely(model, batch)
    staying = [int((index > 0).sum()), int((index > 1).sum())]
    assert 0 < staying[1] < staying[0] < 12
    heads: list[int] = []
    gates: list[int] = []
    for item in model.exits:
        assert isinstance(item.head, LearnedExit)
        rows_seen(item.head.head, heads)
        rows_seen(item.head.gate, gates)
    with torch.no_grad():
        model.run(batch)
    assert gates == [12, staying[0]]
    assert heads == [12 - staying[0], staying[0] - staying[1]]


def test_a_score_that_no_gate_gives_is_refused() -> None:
    model = toy("boostnet")
    model.policy = ThresholdPolicy((0.0, 0.0), GATE)
    with pytest.raises(UsageError, match="the exit one has no learned gate to decide by"):
        model.run(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("temperatures", [[], [float("nan")], [-1.0], [float("inf")]])
def test_plans_take_temperatures_that_can_be_written(temperatures: list[float]) -> None:
    with pytest.raises(ValueError, match="temperatures"):
        BoostExits(temperatures=tuple(temperatures))
