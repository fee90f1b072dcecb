"""SGAD on the digits: where gates go, that it drops what it is asked to, and that it can be trained on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_network import learned_digits
from families import Family
from gated_nets import DIGITS
from torch import nn

from adaptify.assembly import assemble
from adaptify.data import Data, open_data
from adaptify.errors import ModelError
from adaptify.graph.cost import CostModel
from adaptify.graph.sites import find_blocks
from adaptify.graph.trace import trace
from adaptify.methods import FitContext, GateFit, find_method
from adaptify.methods.sgad import Gates, Sgad, Train
from adaptify.models.cifar_resnet import CifarResNet
from adaptify.plan import PlaceMaskNet
from adaptify.runtime.gated import GatedModel
from adaptify.training.gate_records import observe_gates


@pytest.fixture(scope="module")
def data() -> Data:
    """The embedded digits."""
    return open_data("digits", input=DIGITS.input)


@pytest.fixture(scope="module")
def network(data: Data) -> nn.Module:
    """A small network that has learned the digits for a moment."""
    return learned_digits(data, epochs=4)


def placed(network: nn.Module, **gates: Any) -> GatedModel:
    """A copy of `network` with a fresh mask net."""
    traced = trace(copy.deepcopy(network), DIGITS.input.shape)
    torch.manual_seed(0)
    steps = Sgad(Gates.model_validate(gates), Train()).place(traced, CostModel(traced), 10)
    model = assemble(traced, steps)
    assert isinstance(model, GatedModel)
    return model


def fitted(model: GatedModel, data: Data, folder: Path, **train: Any) -> GateFit:
    """Train `model`, in place."""
    method = Sgad(Gates(), Train.model_validate({"batch_size": 32, "recalibrate": 4, **train}))
    return method.fit(model, data, FitContext(torch.device("cpu"), 256, 0, folder, folder))


def test_it_is_registered() -> None:
    assert find_method("sgad") is Sgad


def test_all_blocks_but_the_last_have_gates_and_one_net_decides_them(family: Family) -> None:
    """Over the families: sites are where blocks are, and at first nothing is changed by a bit."""
    blocks = find_blocks(family.traced, family.cost)
    method = Sgad(Gates(), Train())
    if len(blocks) < 2:
        with pytest.raises(ModelError, match="fewer than two residual blocks"):
            method.place(family.traced, family.cost, 1000)
        return
    (step,) = method.place(family.traced, family.cost, 1000)
    assert isinstance(step, PlaceMaskNet)
    assert [site.name for site in step.sites] == [block.name for block in blocks[:-1]]
    model = assemble(family.traced, (step,)).eval()
    assert isinstance(model, GatedModel)
    (decider,) = model.deciders
    assert decider.source == blocks[0].source
    with torch.no_grad():
        decisions = model.run(family.images)
    assert tuple(decisions.gates.shape) == (2, len(blocks) - 1)
    assert bool((decisions.gates == 1).all())
    assert decisions.logits.equal(family.logits)


def test_on_resnet_32_deciding_costs_what_the_paper_says() -> None:
    traced = trace(CifarResNet(blocks=5).eval(), (3, 32, 32))
    cost = CostModel(traced)
    model = assemble(traced, Sgad(Gates(), Train()).place(traced, cost, 10))
    assert isinstance(model, GatedModel)
    assert model.gate_cost.gates == 14
    assert model.decider_macs / cost.total == pytest.approx(0.0006, abs=0.00005)


def test_it_drops_blocks_as_it_is_asked_to_and_keeps_accuracy(
    network: nn.Module, data: Data, tmp_path: Path
) -> None:
    model = placed(network)
    before = observe_gates(model, data.test)
    assert set(before.site_open) == {1.0}
    fit = fitted(model, data, tmp_path, epochs=10, max_drop=0.5)
    seen = observe_gates(model, data.test)
    assert seen.accuracy > before.accuracy - 0.03
    assert 0.05 < 1 - seen.kept < 0.6
    rows = fit.history.rows
    assert len(fit.activity) == len(rows) == 10
    assert set(rows[0].terms) == {"cross_entropy", "masks", "guide"}
    assert rows[-1].terms["guide"] < rows[0].terms["guide"] / 2
    last = rows[-1].extra
    assert 0 < last["drop.wanted"] < 0.5
    # Three blocks: the nearest they can come to a ratio is a third of a sixth away on average.
    assert last["drop.true"] == pytest.approx(last["drop.wanted"], abs=0.2)
    # What guided is gone.
    assert set(model.state_dict()) == set(placed(network).state_dict())


@pytest.mark.parametrize(
    "train",
    [
        {"ste": "identity"},
        {"ste": "sigmoid", "noise": 0.0},
        {"distill": {"weight": 1.0, "temperature": 4.0}, "ema": 0.9, "keep": "best", "label_smoothing": 0.1},
    ],
    ids=str,
)
def test_all_estimators_and_the_options_of_the_loop_train(
    train: dict[str, Any], network: nn.Module, data: Data, tmp_path: Path
) -> None:
    model = placed(network)
    fit = fitted(model, data, tmp_path, epochs=1, **train)
    assert observe_gates(model, data.test).accuracy > 0.5
    assert ("distillation" in fit.history.rows[0].terms) == ("distill" in train)
    weight = dict(model.named_parameters())["gates.mask_net.linear.weight"]
    assert float(weight.detach().abs().max()) > 0


def test_the_same_seed_gives_the_same_network(network: nn.Module, data: Data, tmp_path: Path) -> None:
    states = []
    for name in ("first", "second"):
        model = placed(network)
        torch.manual_seed(len(name))
        fitted(model, data, tmp_path / name, epochs=1)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


def test_an_epoch_that_drops_too_little_is_not_the_best(
    network: nn.Module, data: Data, tmp_path: Path
) -> None:
    # A rate at which masks stay as they are, while the guide asks for more and more.
    fit = fitted(placed(network), data, tmp_path, epochs=2, gate_lr=1e-9, keep="best")
    assert not any(row.validation.eligible for row in fit.history.rows)
    assert all(row.extra["drop.true"] == 0 < row.extra["drop.wanted"] for row in fit.history.rows)
