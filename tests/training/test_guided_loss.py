"""The loss of SGAD: confidence, the drop ratio it maps to, and its three terms by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gated_nets import gated_digits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adaptify.gates.estimators import NoisyRounding
from adaptify.runtime.gated import Decisions, GatedModel
from adaptify.training.guided_loss import GuidedObjective, confidence, dropped, wanted_drop
from adaptify.training.objective import Distillation, Loss, Moment

SCORES = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
@given(scores=SCORES)
def test_confidence_is_both_sides_of_equation_9(scores: list[float]) -> None:
    classes = len(scores)
    logits = torch.tensor([scores], dtype=torch.float64)
    p = logits.softmax(1)
    first = float((p - 1 / classes).square().sum()) / classes
    second = float(p.square().sum()) / classes - 1 / classes**2
    assert first == pytest.approx(second, abs=1e-12)
    assert float(confidence(logits.float())) == pytest.approx(first, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(scores=SCORES, blocks=st.integers(2, 200), most=st.floats(0.01, 0.99))
def test_the_number_of_blocks_cancels_in_the_mapping(scores: list[float], blocks: int, most: float) -> None:
    logits = torch.tensor([scores])
    classes = len(scores)
    scale = -classes * math.log(1 - most) / math.log(blocks)
    by_paper = 1 - blocks ** (1 - scale * float(confidence(logits))) / blocks
    assert float(wanted_drop(logits, most)) == pytest.approx(by_paper, abs=1e-5)


@pytest.mark.parametrize("most", [0.2, 0.8])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_what_is_wanted_goes_from_nothing_to_the_most_allowed(most: float, classes: int) -> None:
    sure = torch.zeros(1, classes)
    sure[0, 1] = 1000.0
    levels = torch.linspace(0, 1, 20).unsqueeze(1) * sure.clamp_max(20)
    wanted = wanted_drop(levels, most)
    assert float(wanted[0]) == pytest.approx(0, abs=1e-6)
    assert bool((wanted.diff() > -1e-6).all())
    # M var is 1 - 1 / M at most.
    assert float(wanted_drop(sure, most)) == pytest.approx(1 - (1 - most) ** (1 - 1 / classes), abs=1e-5)
    assert float(wanted_drop(sure, most)) <= most


def test_the_last_block_counts_among_those_that_could_be_dropped() -> None:
    gates = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert dropped(gates).tolist() == [0, 0.5, 0.75]


class Fixed(nn.Module):
    """A guide that says the same of every image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


LOGITS = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
LABELS = torch.tensor([0, 0])
IMAGES = torch.zeros(2, 1, 8, 8)


@pytest.fixture(scope="module")
def network() -> GatedModel:
    return gated_digits(granularity="layer", kind="dependent")


def loss_of(network: GatedModel, guide: Fixed, gates: Tensor, **options: Any) -> Loss:
    def model(images: Tensor) -> Decisions:
        return Decisions(LOGITS, gates, gates)

    objective = GuidedObjective(network.gate_cost, guide, NoisyRounding(), **options)
    return objective(model, IMAGES, LABELS, Moment(0, 0, 10, 1))


def test_the_three_terms_are_weighed_as_they_should_be(network: GatedModel) -> None:
    guide = Fixed(torch.tensor([[2.0, 0.0]]))
    gates = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    teacher = Distillation(lambda images: LOGITS.flip(1), 0.5, 2.0)
    options = {"network_weight": 2.0, "mask_weight": 5.0, "guide_weight": 0.7, "max_drop": 0.8}
    loss = loss_of(network, guide, gates, distillation=teacher, **options)
    cross_entropy = float(F.cross_entropy(LOGITS, LABELS))
    wanted = float(wanted_drop(guide.logits.detach(), 0.8))
    masks = (abs(wanted - 1 / 4) + abs(wanted - 2 / 4)) / 2
    known = math.log1p(math.exp(-2))
    distilled = float(teacher(IMAGES, LOGITS))
    assert {name: float(term) for name, term in loss.terms.items()} == pytest.approx(
        {"cross_entropy": cross_entropy, "masks": masks, "guide": known, "distillation": distilled}, rel=1e-5
    )
    assert float(loss.total.detach()) == pytest.approx(
        2 * cross_entropy + 5 * masks + 0.7 * known + distilled, rel=1e-5
    )
    assert loss.kept is not None
    assert float(loss.kept) == pytest.approx(float(network.gate_cost.kept(gates.double()).mean()))


def test_the_guide_learns_from_labels_alone(network: GatedModel) -> None:
    slopes = []
    for mask_weight in (0.0, 10.0):
        guide = Fixed(torch.tensor([[0.3, 0.0]]))
        gates = torch.zeros(2, 3, requires_grad=True)
        loss_of(network, guide, gates, mask_weight=mask_weight).total.backward()
        assert guide.logits.grad is not None
        slopes.append(guide.logits.grad)
    assert slopes[0].equal(slopes[1])
    assert float(slopes[0].abs().max()) > 0
    # Masks are held against it: too much is dropped, so gates are asked to open.
    assert gates.grad is not None
    assert bool((gates.grad < 0).all())


def test_noise_grows_with_the_run(network: GatedModel) -> None:
    sampler = NoisyRounding()
    objective = GuidedObjective(network.gate_cost, Fixed(torch.zeros(1, 2)), sampler, noise=1000.0)
    torch.manual_seed(0)
    shares = []
    for step in (0, 9):
        drawn: list[Tensor] = []

        def model(images: Tensor, drawn: list[Tensor] = drawn) -> Decisions:
            drawn.append(sampler(torch.full((2, 3), 5.0).repeat(1, 100)))
            return Decisions(LOGITS, drawn[0], drawn[0][:, :3])

        objective(model, IMAGES, LABELS, Moment(0, step, 10, 1))
        shares.append(float(drawn[0].mean()))
    assert shares[0] == 1
    assert shares[1] == pytest.approx(0.5, abs=0.1)
