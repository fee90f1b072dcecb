"""A module that is trained beside the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import fit
from tiny_data import conv_net, linear_net, weights
from torch import Tensor, nn

from adaptify.errors import AdaptifyError
from adaptify.training.objective import Classification, Loss, Moment


class Both:
    """The network's loss and its companion's, which is told apart by a factor."""

    def __init__(self, companion: nn.Module, factor: float = 1.0) -> None:
        self.companion = companion
        self.factor = factor
        self.modes: set[bool] = set()

    def __call__(self, model: Any, images: Tensor, labels: Tensor, moment: Moment) -> Loss:
        self.modes.add(self.companion.training)
        loss = Classification()(model, images, labels, moment)
        other = nn.functional.cross_entropy(self.companion(images), labels)
        return Loss(loss.total + self.factor * other, loss.logits, loss.terms)


def test_a_companion_learns_and_leaves_the_network_alone(tmp_path: Path) -> None:
    alone, model, companion = linear_net(), linear_net(), conv_net(1).eval()
    before = weights(companion).clone()
    fit(alone, tmp_path / "a", epochs=2)
    objective = Both(companion)
    fit(model, tmp_path / "b", epochs=2, objective=objective, companion=companion, ema=0.5)
    assert objective.modes == {True}
    assert float((weights(companion) - before).abs().max()) > 0.01
    saved = sorted(path.name for path in (tmp_path / "a" / "checkpoints").iterdir())
    assert sorted(path.name for path in (tmp_path / "b" / "checkpoints").iterdir()) == saved

    again = linear_net()
    fit(again, tmp_path / "c", epochs=2, objective=Both(conv_net(1)), companion=conv_net(1))
    assert weights(again).equal(weights(alone))


def test_its_gradient_is_clipped_with_the_others(tmp_path: Path) -> None:
    model, companion = linear_net(), linear_net(1)
    before = torch.cat([weights(model), weights(companion)]).clone()
    settings = {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "schedule": {"kind": "constant"}}
    options = {"epochs": 1, "batch_size": 256, "clip": 0.01, **settings}
    fit(model, tmp_path, objective=Both(companion), companion=companion, **options)
    moved = torch.cat([weights(model), weights(companion)]) - before
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)


def test_a_companion_that_diverges_stops_the_run(tmp_path: Path) -> None:
    companion = linear_net(1)

    class Blown(Both):
        def __call__(self, model: Any, images: Tensor, labels: Tensor, moment: Moment) -> Loss:
            with torch.no_grad():
                next(self.companion.parameters()).fill_(float("inf"))
            return Classification()(model, images, labels, moment)

    with pytest.raises(AdaptifyError, match="a weight is not finite"):
        fit(linear_net(), tmp_path, objective=Blown(companion), companion=companion)
