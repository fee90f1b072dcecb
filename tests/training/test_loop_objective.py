from __future__ import annotations

import math

import pytest
import torch
from tiny_data import linear_net, weights
from torch import Tensor

from adaptify.training.objective import Classification, Distillation, Moment
from adaptify.training.options import Distill

NOW = Moment(epoch=0, step=3, steps=12, epochs=3)
IMAGES = torch.zeros(2, 1, 4, 4)
LOGITS = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
LABELS = torch.tensor([0, 0])


def student(images: Tensor) -> Tensor:
    return LOGITS.clone().requires_grad_()


def test_progress_is_the_share_of_steps_done() -> None:
    assert NOW.progress == 0.25


def test_cross_entropy_by_hand() -> None:
    loss = Classification()(student, IMAGES, LABELS, NOW)
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(3))) / 2
    assert loss.total.item() == pytest.approx(expected)
    assert loss.total.requires_grad
    assert loss.terms["cross_entropy"].item() == pytest.approx(expected)
    assert not loss.terms["cross_entropy"].requires_grad
    assert loss.kept is None


def test_label_smoothing_by_hand() -> None:
    loss = Classification(label_smoothing=0.2)(student, IMAGES, LABELS, NOW)
    # The target is 0.9 for the label and 0.1 for the other class.
    rows = [
        (math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))),
        (math.log(1 + math.exp(3)), math.log(1 + math.exp(-3))),
    ]
    assert loss.total.item() == pytest.approx(sum(0.9 * right + 0.1 * wrong for right, wrong in rows) / 2)


def test_networks_that_return_more_than_logits_are_understood() -> None:
    plain = Classification()(student, IMAGES, LABELS, NOW)
    tuples = Classification()(lambda images: (student(images), {"exit": 1}), IMAGES, LABELS, NOW)
    assert tuples.total.equal(plain.total)
    assert tuples.logits.equal(plain.logits)


def test_distillation_by_hand() -> None:
    teacher = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    term = Distillation(lambda images: teacher, weight=0.5, temperature=2.0)(IMAGES, LOGITS)

    def divergence(target: float, given: float) -> float:
        """KL between two Bernoulli distributions with these differences of logits."""
        p, q = 1 / (1 + math.exp(-target)), 1 / (1 + math.exp(-given))
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    expected = 0.5 * 2.0**2 * (divergence(1.0, 0.5) + divergence(0.0, -1.5)) / 2
    assert term.item() == pytest.approx(expected, rel=1e-5)


def test_a_student_that_says_what_the_teacher_says_has_nothing_to_learn() -> None:
    term = Distillation(lambda images: LOGITS + 5.0, weight=3.0, temperature=4.0)(IMAGES, LOGITS)
    assert term.item() == pytest.approx(0.0, abs=1e-6)


def test_the_gradient_of_distillation_at_a_high_temperature_is_that_of_the_difference_of_logits() -> None:
    # Hinton et al., section 2.1: (z - v) / (N T^2) for centred logits and N classes, here times T^2.
    logits = torch.tensor([[0.3, -0.3]], requires_grad=True)
    Distillation(lambda images: torch.tensor([[-0.1, 0.1]]), 1.0, temperature=100.0)(
        IMAGES[:1], logits
    ).backward()
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx([0.2, -0.2], rel=1e-3)


def test_the_total_is_the_sum_of_the_terms() -> None:
    objective = Classification(0.1, Distillation(lambda images: LOGITS.flip(1), 2.0, 3.0))
    loss = objective(student, IMAGES, LABELS, NOW)
    assert set(loss.terms) == {"cross_entropy", "distillation"}
    assert loss.total.item() == pytest.approx(sum(term.item() for term in loss.terms.values()))


def test_the_teacher_is_a_copy_that_never_changes() -> None:
    network = linear_net().train()
    images = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    said = network(images).detach()
    before = weights(network).clone()
    distillation = Distillation.of(Distill(weight=1, temperature=1), network)
    with torch.no_grad():
        network[1].weight.zero_()
    logits = network(images)
    distillation(images, logits).backward()

    assert distillation.teacher(images).equal(said)
    assert weights(distillation.teacher).equal(before)
    assert not distillation.teacher.training
    assert all(parameter.grad is None for parameter in distillation.teacher.parameters())
    assert network.training
    assert network[1].weight.grad is not None
