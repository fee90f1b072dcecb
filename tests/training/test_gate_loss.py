"""What gates are trained towards: the losses by hand and in expectation, and targets over time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from gated_nets import gated_digits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adaptify.runtime.gated import Decisions
from adaptify.training.gate_loss import (
    GateObjective,
    Target,
    TargetSchedule,
    activation,
    distance,
    macs_used,
)
from adaptify.training.objective import Distillation, Loss, Moment

LOGITS = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
LABELS = torch.tensor([0, 0])
CROSS_ENTROPY = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(3))) / 2
IMAGES = torch.zeros(2, 1, 4, 4)

probability = st.floats(0, 1)


def outcomes(chances: list[float]) -> list[tuple[float, Tensor]]:
    """Every way in which gates can fall, with its probability."""
    return [
        (
            math.prod(p if open_ else 1 - p for p, open_ in zip(chances, way, strict=True)),
            torch.tensor(way, dtype=torch.float64),
        )
        for way in itertools.product((0, 1), repeat=len(chances))
    ]


def expected(chances: list[float], value: Callable[[Tensor], Tensor]) -> float:
    return sum(weight * float(value(gates)) for weight, gates in outcomes(chances))


@settings(max_examples=40, deadline=None)
@given(chances=st.lists(probability, min_size=1, max_size=5), target=probability)
def test_the_expected_loss_is_bias_and_variance(chances: list[float], target: float) -> None:
    """E[(t - Q)^2] = (t - E Q)^2 + Var Q: it is least when gates have decided."""
    loss = expected(chances, lambda gates: distance(activation(gates), target, const_quad=False))
    mean = sum(chances) / len(chances)
    variance = sum(p * (1 - p) for p in chances) / len(chances) ** 2
    assert loss == pytest.approx((target - mean) ** 2 + variance, abs=1e-12)


@given(open_=st.integers(0, 4), wavering=probability)
def test_the_expected_loss_is_zero_for_polarised_gates_at_the_target_only(
    open_: int, wavering: float
) -> None:
    def loss(chances: list[float], target: float) -> float:
        return expected(chances, lambda gates: distance(activation(gates), target, const_quad=False))

    polarised = [1.0] * open_ + [0.0] * (4 - open_)
    assert loss(polarised, open_ / 4) == 0
    assert loss(polarised, open_ / 4 + 0.1) == pytest.approx(0.01)
    # One more gate, and the target that it makes on average.
    chances = [*polarised, wavering]
    target = sum(chances) / 5
    assert loss(chances, target) == pytest.approx(wavering * (1 - wavering) / 25, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(used=probability, target=probability)
def test_const_quad_asks_nothing_below_the_target(used: float, target: float) -> None:
    found = float(distance(torch.tensor(used, dtype=torch.float64), target, const_quad=True))
    assert found == (0 if used <= target else pytest.approx((used - target) ** 2))


def test_a_batch_is_judged_by_its_mean_and_gates_on_their_own() -> None:
    gates = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0]])  # two samples, four gates
    assert float(activation(gates)) == 5 / 8
    assert float(distance(activation(gates), 0.5, const_quad=False)) == pytest.approx(1 / 64)
    # Means over the batch 1, 1, 1/2, 0, each held against 1/2.
    assert float(distance(gates.mean(0), 0.5, const_quad=False)) == pytest.approx((1 / 4 + 1 / 4 + 1 / 4) / 4)
    assert float(distance(gates.mean(0), 0.5, const_quad=True)) == pytest.approx((1 / 4 + 1 / 4) / 4)


MODEL = gated_digits(granularity="layer")
COST = MODEL.gate_cost
SHARES = [1 - COST.without(index) / COST.total for index in range(3)]  # of the MACs, block by block


def test_macs_in_use_go_from_none_to_all() -> None:
    assert float(macs_used(torch.zeros(3), COST)) == 0
    assert float(macs_used(torch.ones(4, 3), COST)) == 1
    gates = torch.tensor([[1.0, 0, 0], [1, 1, 0]])
    wanted = (SHARES[0] + SHARES[1] / 2) / sum(SHARES)
    assert float(macs_used(gates, COST)) == pytest.approx(wanted, rel=1e-5)


def network(gates: Tensor) -> Callable[[Tensor], Decisions]:
    return lambda images: Decisions(LOGITS.clone().requires_grad_(), torch.zeros_like(gates), gates)


START = Moment(epoch=0, step=0, steps=12, epochs=3)


def judge(objective: GateObjective, gates: Tensor, moment: Moment = START) -> Loss:
    return objective(network(gates), IMAGES, LABELS, moment)


def constant(final: float) -> Target:
    return Target(final, TargetSchedule(kind="constant"))


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_whole_loss_by_hand(weight: float) -> None:
    gates = torch.tensor([1.0, 0, 1], requires_grad=True)
    loss = judge(GateObjective(COST, constant(0.6), measure="activation", weight=weight), gates)
    gap = (2 / 3 - 0.6) ** 2
    assert float(loss.terms["cross_entropy"]) == pytest.approx(CROSS_ENTROPY)
    assert float(loss.terms["gates"]) == pytest.approx(gap, rel=1e-4)
    assert loss.total.item() == pytest.approx(CROSS_ENTROPY + weight * gap)
    assert loss.kept is not None
    assert float(loss.kept) == pytest.approx(1 - SHARES[1])
    loss.total.backward()
    assert gates.grad is not None
    assert gates.grad.tolist() == pytest.approx([weight * 2 * (2 / 3 - 0.6) / 3] * 3, rel=1e-4)


def test_the_target_of_macs_is_a_fraction_of_the_network() -> None:
    """A batch that uses exactly the target has no loss, and a block pulls as hard as it is large."""
    gates = torch.tensor([1.0, 0, 1], requires_grad=True)
    used = 1 - SHARES[1]
    loss = judge(GateObjective(COST, constant(used)), gates)
    assert float(loss.terms["gates"]) == pytest.approx(0, abs=1e-10)
    loss = judge(GateObjective(COST, constant(used - 0.1), weight=1.0), gates)
    # Distances are in parts of what gates can close.
    assert float(loss.terms["gates"]) == pytest.approx((0.1 / sum(SHARES)) ** 2, rel=1e-3)
    loss.total.backward()
    assert gates.grad is not None
    pull = [gates.grad[index].item() / SHARES[index] for index in range(3)]
    assert pull[1:] == pytest.approx([pull[0]] * 2, rel=1e-4)
    assert pull[0] > 0


def test_samples_share_one_target() -> None:
    gates = torch.tensor([[1.0, 1, 1], [0, 0, 0]])
    batch = judge(GateObjective(COST, constant(0.5), measure="activation"), gates)
    assert float(batch.terms["gates"]) == pytest.approx(0)
    alike = judge(GateObjective(COST, constant(0.5), measure="per_gate"), gates)
    assert float(alike.terms["gates"]) == pytest.approx(0)
    split = judge(
        GateObjective(COST, constant(0.5), measure="per_gate"), torch.tensor([[1.0, 1, 0], [1, 0, 0]])
    )
    assert float(split.terms["gates"]) == pytest.approx((0.25 + 0 + 0.25) / 3)


def test_using_less_is_free_if_asked_for() -> None:
    gates = torch.tensor([1.0, 0, 0], requires_grad=True)
    objective = GateObjective(COST, constant(0.9), measure="activation", const_quad=True)
    loss = judge(objective, gates)
    assert loss.total.item() == pytest.approx(CROSS_ENTROPY)
    loss.total.backward()
    assert gates.grad is not None
    assert not gates.grad.any()


def test_distillation_and_smoothing_come_on_top() -> None:
    gates = torch.ones(3)
    distillation = Distillation(lambda images: torch.zeros(2, 2), weight=0.5, temperature=2.0)
    loss = judge(GateObjective(COST, constant(1.0), label_smoothing=0.1, distillation=distillation), gates)
    term = float(distillation(IMAGES, LOGITS))
    assert term > 0
    assert float(loss.terms["distillation"]) == pytest.approx(term)
    smooth = float(F.cross_entropy(LOGITS, LABELS, label_smoothing=0.1))
    assert loss.total.item() == pytest.approx(smooth + term)


def moments(epochs: int, per_epoch: int) -> list[Moment]:
    steps = epochs * per_epoch
    return [Moment(step // per_epoch, step, steps, epochs) for step in range(steps)]


def course(target: Target, epochs: int, per_epoch: int = 4) -> list[float]:
    """The targets at the first step of each epoch."""
    return [target.at(moment) for moment in moments(epochs, per_epoch)][::per_epoch]


def test_a_constant_target_stays() -> None:
    assert set(course(constant(0.4), 6)) == {0.4}


def test_an_annealed_target_falls_by_a_every_k_epochs() -> None:
    target = Target(0.7, TargetSchedule(kind="annealed", step=0.1, every=2))
    # From 1, so the first steps are already at 1 - a.
    assert course(target, 8) == pytest.approx([0.9, 0.9, 0.8, 0.8, 0.7, 0.7, 0.7, 0.7])


@settings(max_examples=40, deadline=None)
@given(final=st.floats(0.05, 1), step=st.floats(0.02, 1), epochs=st.integers(1, 30))
def test_an_annealed_target_leaves_half_of_the_run_to_the_final_one(
    final: float, step: float, epochs: int
) -> None:
    target = Target(final, TargetSchedule(kind="annealed", step=step))
    values = [target.at(moment) for moment in moments(epochs, 8)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(max(final, 1 - step))
    assert set(values[len(values) // 2 :]) == {final}


def test_a_variable_target_is_the_mean_of_what_was_used() -> None:
    target = Target(0.8, TargetSchedule(kind="variable"))
    first, second, third, *_ = moments(2, 3)
    assert target.at(first) == 0.8
    target.follow(torch.tensor(0.6))
    assert target.at(second) == pytest.approx((0.8 + 0.6) / 2)
    target.follow(torch.tensor(0.4))
    assert target.at(third) == pytest.approx((0.8 + 0.6 + 0.4) / 3)
    target.follow(torch.tensor(0.1))
    # Every epoch starts at the target again.
    assert target.at(moments(2, 3)[3]) == 0.8


def test_a_variable_target_may_forget() -> None:
    target = Target(0.8, TargetSchedule(kind="variable", decay=0.9))
    first, second, third, *_ = moments(1, 3)
    target.at(first)
    target.follow(torch.tensor(0.6))
    assert target.at(second) == pytest.approx(0.78)
    target.follow(torch.tensor(0.4))
    assert target.at(third) == pytest.approx(0.9 * 0.78 + 0.04)


@pytest.mark.parametrize("measure", ["macs", "activation", "per_gate"])
def test_a_variable_target_of_a_loss_follows_its_batches(measure: str) -> None:
    target = Target(0.9, TargetSchedule(kind="variable"))
    objective = GateObjective(COST, target, measure=measure)  # type: ignore[arg-type]
    gates = torch.tensor([1.0, 0, 1])
    used = 1 - SHARES[1] if measure == "macs" else 2 / 3
    first, second, *_ = moments(1, 3)
    judge(objective, gates, first)
    assert target.at(second) == pytest.approx((0.9 + used) / 2, rel=1e-5)
