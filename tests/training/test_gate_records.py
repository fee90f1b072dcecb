"""Records of gates by class, of ensembles, and of gates that scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gated_nets import DIGITS, gated_digits, shake
from torch import Tensor

from adaptify.data import MemorySplit
from adaptify.data.augment import Augmentation
from adaptify.runtime.gate_policy import GatePolicy, SaliencePolicy
from adaptify.runtime.gated import GatedModel
from adaptify.training.gate_records import observe_gates

LABELS = torch.tensor([3, 1, 3, 9, 1, 3, 0])


def digits() -> MemorySplit:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 255, (len(LABELS), 1, 8, 8), generator=generator).byte()
    return MemorySplit(
        lambda report: pixels, LABELS, torch.arange(len(LABELS)), DIGITS.input, Augmentation(flip=False)
    )


def lively(**options: Any) -> GatedModel:
    return shake(gated_digits(kind="dependent", **options))


def gates_of(model: GatedModel) -> Tensor:
    (images, _), *_ = digits().batches(len(LABELS))
    with torch.no_grad():
        return model.run(images).gates


@pytest.mark.parametrize("batch_size", [2, 7])
def test_open_gates_are_counted_by_class(batch_size: int) -> None:
    model = lively()
    found = observe_gates(model, digits(), batch_size=batch_size, by_class=True)
    assert found.opened_by_class is not None
    gates = gates_of(model).double()
    assert 0 < float(gates.mean()) < 1
    for label in range(10):
        assert torch.equal(found.opened_by_class[label], gates[label == LABELS].sum(0)), label
    torch.testing.assert_close(found.opened_by_class.sum(0) / len(LABELS), found.open)
    assert observe_gates(model, digits()).opened_by_class is None


def test_a_gate_that_scales_is_open_and_costs_what_an_open_one_costs() -> None:
    model = lively()
    model.policy = SaliencePolicy()
    gates = gates_of(model)
    assert bool(((gates > 0) & (gates < 1)).any())
    assert bool((gates == 0).any())
    found = observe_gates(model, digits())
    torch.testing.assert_close(found.open, (gates > 0).double().mean(0))
    torch.testing.assert_close(found.probabilities, gates.double().mean(0), atol=1e-6, rtol=0)
    assert found.macs.tolist() == (model.gate_cost((gates > 0).long()) + model.decider_macs).tolist()


def test_an_ensemble_takes_what_all_its_runs_take() -> None:
    model = lively(granularity="layer")
    draws = []
    torch.manual_seed(0)
    model.policy = GatePolicy("stochastic")
    for _ in range(3):
        draws.append(observe_gates(model, digits(), batch_size=7))
    assert len({tuple(draw.macs.tolist()) for draw in draws}) == 3
    torch.manual_seed(0)
    model.policy = GatePolicy("stochastic", runs=3)
    found = observe_gates(model, digits(), batch_size=7, by_class=True)
    assert found.macs.tolist() == sum(draw.macs for draw in draws).tolist()
    assert found.kept == pytest.approx(sum(draw.kept for draw in draws))
    torch.testing.assert_close(found.open, torch.stack([draw.open for draw in draws]).mean(0))
    mean = torch.stack([draw.logits.softmax(1) for draw in draws]).mean(0)
    torch.testing.assert_close(found.logits.softmax(1), mean)
