"""Gumbel gates on the digits: they reach their target, keep accuracy, and learn at the right speed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_network import learned_digits
from gated_nets import DIGITS
from torch import nn

from adaptify.assembly import assemble
from adaptify.data import Data, open_data
from adaptify.errors import AdaptifyError, ModelError, TargetError
from adaptify.freeze import freeze
from adaptify.graph.cost import CostModel
from adaptify.graph.trace import trace
from adaptify.methods import FitContext, GateFit, find_method
from adaptify.methods.gating import with_gate_rate
from adaptify.methods.gumbel import Gates, Gumbel, Train
from adaptify.models.cifar_resnet import CifarResNet
from adaptify.models.registry import resolve
from adaptify.plan import DecoupleBlocks, PlaceGates
from adaptify.runtime.gated import GatedModel
from adaptify.training.gate_records import observe_gates
from adaptify.training.optimizer import GateParameters, parameter_groups


@pytest.fixture(scope="module")
def data() -> Data:
    """The embedded digits."""
    return open_data("digits", input=DIGITS.input)


@pytest.fixture(scope="module")
def network(data: Data) -> nn.Module:
    """A small network that has learned the digits for a moment."""
    return learned_digits(data, epochs=4)


def fitted(
    network: nn.Module, data: Data, folder: Path, gates: dict[str, Any], train: dict[str, Any], seed: int = 0
) -> tuple[GatedModel, GateFit]:
    """Place and train gates on a copy of `network`."""
    method = Gumbel(Gates.model_validate(gates), Train.model_validate({"batch_size": 32, **train}))
    traced = trace(copy.deepcopy(network), DIGITS.input.shape)
    torch.manual_seed(seed)
    model = assemble(traced, method.place(traced, CostModel(traced), 10))
    assert isinstance(model, GatedModel)
    method.check(model)
    fit = method.fit(model, data, FitContext(torch.device("cpu"), 256, seed, folder, folder))
    return model, fit


def accuracy(network: nn.Module, data: Data) -> float:
    images, labels = next(data.test.batches(len(data.test)))
    with torch.no_grad():
        return float((network(images).argmax(1) == labels).double().mean())


def test_it_is_registered() -> None:
    assert find_method("gumbel") is Gumbel


def test_channel_gates_reach_their_target_and_keep_accuracy(
    network: nn.Module, data: Data, tmp_path: Path
) -> None:
    before = accuracy(network, data)
    assert before > 0.9
    model, fit = fitted(network, data, tmp_path, {"filters": 4}, {"epochs": 12, "target": 0.5})
    assert not model.training
    seen = observe_gates(model, data.test)
    assert seen.kept == pytest.approx(0.5, abs=0.06)
    assert seen.accuracy > before - 0.02
    # Most have decided for good.
    assert seen.polarised > 0.5
    frozen = freeze(model, 0.5)
    assert frozen.macs == pytest.approx(0.5 * model.cost.total, rel=0.01)
    assert len(fit.activity) == len(fit.history.rows) == 12
    assert all(len(row) == len(model.sites) for row in fit.activity)
    first, last = fit.history.rows[0], fit.history.rows[-1]
    assert last.validation.kept == pytest.approx(seen.kept, abs=0.05)
    assert first.validation.kept > last.validation.kept
    assert fit.timing["training_s"] > 0


@pytest.mark.parametrize(
    ("kind", "granularity"),
    [
        pytest.param("dependent", "channel", marks=pytest.mark.slow),
        pytest.param("independent", "layer", marks=pytest.mark.slow),
        ("dependent", "layer"),
    ],
)
def test_the_other_variants_learn_too(
    kind: str, granularity: str, network: nn.Module, data: Data, tmp_path: Path
) -> None:
    gates = {"kind": kind, "granularity": granularity}
    model, fit = fitted(network, data, tmp_path, gates, {"epochs": 6, "target": 0.67})
    seen = observe_gates(model, data.test)
    assert seen.accuracy > 0.85
    # What was drawn in training; at the threshold, gates that waver are all open.
    assert fit.history.rows[-1].kept == pytest.approx(0.67, abs=0.06)
    assert seen.kept < 1
    if kind == "dependent":
        assert float(seen.macs.std()) > 0
    else:
        assert float(seen.macs.std()) == 0


@pytest.mark.parametrize(
    "train",
    [
        {"measure": "activation"},
        {"measure": "per_gate"},
        {"const_quad": True},
        {"target_schedule": {"kind": "constant"}},
        {"target_schedule": {"kind": "variable"}},
        {"distill": {"weight": 1.0, "temperature": 4.0}, "ema": 0.9, "keep": "best"},
    ],
    ids=str,
)
def test_all_losses_and_schedules_train(
    train: dict[str, Any], network: nn.Module, data: Data, tmp_path: Path
) -> None:
    options = {"epochs": 1, "recalibrate": 2, **train}
    model, fit = fitted(network, data, tmp_path, {"filters": 4}, options)
    assert accuracy(model, data) > 0.5
    assert set(fit.history.rows[0].terms) >= {"cross_entropy", "gates"}
    assert ("distillation" in fit.history.rows[0].terms) == ("distill" in train)


def test_the_same_seed_gives_the_same_network(network: nn.Module, data: Data, tmp_path: Path) -> None:
    first, second = (
        fitted(network, data, tmp_path / name, {"filters": 4}, {"epochs": 1})[0].state_dict()
        for name in ("first", "second")
    )
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())


def test_without_epochs_nothing_but_statistics_changes(
    network: nn.Module, data: Data, tmp_path: Path
) -> None:
    model, fit = fitted(network, data, tmp_path, {}, {"epochs": 0, "recalibrate": 0})
    assert fit.history.rows == ()
    assert fit.activity == ()
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    assert accuracy(model, data) == accuracy(network, data)


def test_gates_have_a_decay_and_a_rate_of_their_own(network: nn.Module) -> None:
    method = Gumbel(Gates(filters=2), Train(epochs=10, batch_size=64, weight_decay=1e-3, lr=0.02))
    traced = trace(copy.deepcopy(network), DIGITS.input.shape)
    model = assemble(traced, method.place(traced, CostModel(traced), 10))
    assert isinstance(model, GatedModel)
    count = model.gate_cost.gates
    settings = with_gate_rate(method.train, 4.0, count, 640)
    groups = parameter_groups(model, settings, GateParameters(model.gate_parameters, count))
    by_id = {id(parameter): group for group in groups for parameter in group["params"]}
    mine = {id(parameter) for parameter in model.gate_parameters}
    gate_group = next(group for key, group in by_id.items() if key in mine)
    # wd * 20 / |G|, for all gates and for nothing else.
    assert gate_group["weight_decay"] == pytest.approx(1e-3 * 20 / count)
    assert {id(parameter) for parameter in gate_group["params"]} == mine
    others = [group for group in groups if group is not gate_group]
    assert {(group["weight_decay"], group["lr"]) for group in others} == {(1e-3, 0.02)}


def test_the_rate_of_gates_suits_their_number_and_the_length_of_the_run() -> None:
    def rate(gates: int, images: int, **train: Any) -> float | None:
        options = Train.model_validate({"epochs": 10, "batch_size": 64, **train})
        return with_gate_rate(options, 4.0, gates, images).gate_lr

    base = rate(100, 6400)
    assert base is not None
    # Twice the gates pull half as hard each; twice the steps need half the rate.
    assert rate(200, 6400) == pytest.approx(2 * base)
    assert rate(100, 12800) == pytest.approx(base / 2)
    assert rate(100, 6400, epochs=20) == pytest.approx(base / 2)
    assert rate(100, 6400, accumulate=2) == pytest.approx(2 * base)
    assert rate(100, 6400, gate_lr=0.123) == 0.123
    assert rate(100, 6400, epochs=0) is None


def place(model: nn.Module, shape: tuple[int, int, int], **gates: Any) -> tuple[Any, ...]:
    traced = trace(model.eval(), shape)
    return Gumbel(Gates.model_validate(gates), Train()).place(traced, CostModel(traced), 10)


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)
    )


def test_steps_say_where_gates_go(network: nn.Module) -> None:
    decoupled, gates = place(copy.deepcopy(network), DIGITS.input.shape)
    assert decoupled == DecoupleBlocks(blocks=("layer1.0", "layer2.0", "layer3.0"))
    assert isinstance(gates, PlaceGates)
    assert not gates.dependent
    assert gates.open_probability == 0.98
    (gates,) = place(copy.deepcopy(network), DIGITS.input.shape, granularity="layer", kind="dependent")
    assert [(site.name, site.position) for site in gates.sites] == [
        (f"layer{index}.0", "layer") for index in (1, 2, 3)
    ]
    assert gates.dependent
    assert gates.open_probability == 0.87
    (gates,) = place(chain(), (3, 8, 8))
    assert [(site.name, site.block, site.always_open) for site in gates.sites] == [("0", None, 8)]


def test_projections_have_gates_where_there_are_any() -> None:
    *_, gates = place(CifarResNet(blocks=1, shortcut="B"), (3, 32, 32), positions=["shortcut"])
    assert [site.name for site in gates.sites] == ["layer2.0.shortcut.0", "layer3.0.shortcut.0"]
    with pytest.raises(ModelError, match="no channels that gates could close at: shortcut"):
        place(CifarResNet(blocks=1, shortcut="A"), (3, 32, 32), positions=["shortcut"])


@pytest.mark.parametrize(
    ("gates", "told"),
    [
        ({"kind": "dependent"}, "has no residual block that a dependent gate could look at"),
        ({"granularity": "layer"}, "has no residual block that could be left out"),
        ({"positions": ["input", "output"]}, "has no channels that gates could close at: input, output"),
        ({"filters": 32}, "has no channels that gates could close at"),
    ],
    ids=str,
)
def test_networks_without_a_place_for_gates_are_refused(gates: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError, match=told) as caught:
        place(chain(), (3, 8, 8), **gates)
    assert caught.value.exit_code == 4
    assert caught.value.hint


def test_a_target_below_what_gates_can_reach_is_refused(
    network: nn.Module, data: Data, tmp_path: Path
) -> None:
    with pytest.raises(TargetError, match=r"a target of 0.3 of the MACs is out of reach: .* 0.\d+ are left"):
        fitted(network, data, tmp_path, {"positions": ["output"]}, {"epochs": 1, "target": 0.3})


def test_a_network_that_diverges_says_so(network: nn.Module, data: Data, tmp_path: Path) -> None:
    with pytest.raises(AdaptifyError, match="training diverged"):
        fitted(network, data, tmp_path, {}, {"epochs": 2, "lr": 1e8})


def test_a_paper_network_has_the_gates_of_the_paper() -> None:
    architecture = resolve("adaptify:cifar_resnet56")
    *_, gates = place(architecture.build(), architecture.input.shape, filters=8)
    # What a block reads, computes and adds: 27 blocks of three positions, in eights.
    assert len(gates.sites) == 81
    count = sum(-(-site.size // 8) for site in gates.sites)
    assert count == 9 * 3 * 2 + (2 + 4 + 4) + 8 * 3 * 4 + (4 + 8 + 8) + 8 * 3 * 8
