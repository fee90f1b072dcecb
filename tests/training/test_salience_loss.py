"""The loss of LC-Net: by hand, and when its pressure ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from adaptify.gates.salience import leaky_relu1
from adaptify.graph.cost import CostModel
from adaptify.graph.gate_cost import GateCost
from adaptify.graph.gate_sites import find_layer_sites
from adaptify.graph.sites import find_blocks
from adaptify.graph.trace import trace
from adaptify.runtime.gated import Decisions
from adaptify.training.gate_loss import Target, TargetSchedule
from adaptify.training.objective import Distillation, Moment
from adaptify.training.salience_loss import SalienceObjective

LOGITS = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
LABELS = torch.tensor([0, 0])
CROSS_ENTROPY = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(3))) / 2
IMAGES = torch.zeros(2, 3, 8, 8)
NOW = Moment(epoch=0, step=0, steps=1, epochs=1)
# Two blocks: which of the two saliences is of a layer is up to the test, the cost takes both as of layers.
RAW = torch.tensor([[0.5, -2.0], [3.0, 0.25]])
LEAKY = torch.tensor([[0.5, -0.02], [1.02, 0.25]])


class Block(nn.Module):
    """x + f(x), f being one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.conv(x))


def two_blocks() -> GateCost:
    """A stem and two blocks that can be closed, of 64 * 9 * 4 * 4 MACs each, and a head."""
    stem = nn.Conv2d(3, 4, 3, padding=1)
    net = nn.Sequential(stem, Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    traced = trace(net.eval(), (3, 8, 8))
    return GateCost(traced, None, find_layer_sites(find_blocks(traced, CostModel(traced))))


COST = two_blocks()
KEPT = (COST.total - 64 * 9 * 16 / 2) / COST.total  # one of two samples leaves one block out


def saying(raw: Tensor) -> Callable[[Tensor], Decisions]:
    """A network whose saliences are `raw`, before ReLU-1."""
    return lambda images: Decisions(LOGITS, raw, leaky_relu1(raw))


def objective(first_is_layer: bool = True, **options: object) -> SalienceObjective:
    layers = torch.tensor([first_is_layer, False])
    return SalienceObjective(COST, layers, **{"l1_layer": 0.0, "l1_channel": 0.0, **options})  # type: ignore[arg-type]


def test_the_loss_by_hand() -> None:
    loss = objective(l1_layer=2.0, l1_channel=5.0)(saying(RAW), IMAGES, LABELS, NOW)
    assert float(loss.terms["cross_entropy"]) == pytest.approx(CROSS_ENTROPY)
    # Of four saliences: what leaks below 0 counts by how far it is from 0.
    assert float(loss.terms["layers"]) == pytest.approx((0.5 + 1.02) / 4)
    assert float(loss.terms["channels"]) == pytest.approx((0.02 + 0.25) / 4)
    assert float(loss.total) == pytest.approx(CROSS_ENTROPY + 2 * 1.52 / 4 + 5 * 0.27 / 4)


def test_what_is_kept_is_what_evaluation_will_compute() -> None:
    loss = objective()(saying(RAW), IMAGES, LABELS, NOW)
    assert loss.kept is not None
    # The leaky salience of -0.02 is closed.
    assert float(loss.kept) == pytest.approx(KEPT)


def test_l1_pulls_every_salience_towards_0() -> None:
    raw = RAW.clone().requires_grad_()
    objective(first_is_layer=False, l1_channel=1.0)(saying(raw), IMAGES, LABELS, NOW).total.backward()
    assert raw.grad is not None
    expected = torch.tensor([[0.25, -0.0025], [0.0025, 0.25]])
    torch.testing.assert_close(raw.grad, expected)


@pytest.mark.parametrize(("target", "pulls"), [(KEPT - 0.01, True), (KEPT + 0.01, False)])
def test_the_pressure_ends_at_the_target(target: float, pulls: bool) -> None:
    goal = Target(target, TargetSchedule(kind="constant"))
    raw = RAW.clone().requires_grad_()
    loss = objective(l1_layer=1.0, l1_channel=1.0, target=goal)(saying(raw), IMAGES, LABELS, NOW)
    loss.total.backward()
    assert raw.grad is not None
    assert bool(raw.grad.any()) == pulls
    assert float(loss.total.detach()) == pytest.approx(CROSS_ENTROPY + pulls * (1.52 + 0.27) / 4)


def test_other_terms_join() -> None:
    teacher = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    distillation = Distillation(lambda images: teacher, weight=0.5, temperature=2.0)
    loss = objective(distillation=distillation, label_smoothing=0.1)(saying(RAW), IMAGES, LABELS, NOW)
    smooth = torch.nn.functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.1)
    assert float(loss.total) == pytest.approx(float(smooth + distillation(IMAGES, LOGITS)))
