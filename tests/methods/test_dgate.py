"""d-gate: where gates go by default, and that training them from the cache gives good exits."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from digits_network import learned_digits
from torch import nn

from adaptify.assembly import place_exits
from adaptify.data import Data, open_data
from adaptify.errors import UsageError
from adaptify.graph.cost import CostModel
from adaptify.graph.sites import ExitSite
from adaptify.graph.trace import trace
from adaptify.methods import ExitFit, FitContext, find_method, method_names
from adaptify.methods.dgate import DGate, Gates, Train, enough_averages
from adaptify.models.registry import resolve
from adaptify.pipeline.calibration import calibrate_model
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.training.evaluate import evaluate, replay
from adaptify.training.records import load_records, save_records

DIGITS = resolve("adaptify:digits_resnet")
SITE = ExitSite("layer1", (), "layer1", 16, 1, 64, 0, is_module_output=True, is_map=True)

Once = tuple[DGate, AdaptiveModel, ExitFit]


@pytest.fixture(scope="module")
def data() -> Data:
    """The embedded digits."""
    return open_data("digits", input=DIGITS.input)


@pytest.fixture(scope="module")
def network(data: Data) -> nn.Module:
    """A small network that has learned the digits for a moment."""
    return learned_digits(data, epochs=3)


def fitted(network: nn.Module, data: Data, tmp_path: Path, **gates: object) -> Once:
    """Place and train the gates of d-gate; return method, model and fit."""
    method = DGate(Gates(**gates), Train())
    traced = trace(network, DIGITS.input.shape)
    steps = method.place(traced, CostModel(traced), 10)
    model = AdaptiveModel(traced, place_exits(traced, steps)).eval()
    fit = method.fit(model, data, FitContext(torch.device("cpu"), 256, 0, tmp_path, tmp_path))
    return method, model, fit


@pytest.fixture(scope="module")
def once(network: nn.Module, data: Data, tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Gates with all defaults, trained once; the network is only to be copied."""
    return fitted(network, data, tmp_path_factory.mktemp("once"))


def test_it_is_registered_and_others_are_not() -> None:
    assert find_method("dgate") is DGate
    assert "dgate" in method_names()
    with pytest.raises(UsageError, match="did you mean 'dgate'"):
        find_method("d-gate")


@pytest.mark.parametrize("loss", ["hinge", "cross_entropy"])
def test_gates_learn_and_the_backbone_stays(
    network: nn.Module, data: Data, tmp_path: Path, loss: str
) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    _, model, fit = fitted(network, data, tmp_path, loss=loss)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    accuracies = fit.test.correct.double().mean(1)
    assert accuracies[0] > 0.8
    assert accuracies[1] > 0.9
    assert not list(tmp_path.iterdir())


def test_records_are_what_the_network_says(once: Once, data: Data) -> None:
    _, model, fit = once
    images, labels = next(data.test.batches(len(data.test)))
    with torch.no_grad():
        final, exits = model.dense(images)
    assert torch.equal(fit.test.labels, labels)
    assert torch.equal(fit.test.predictions[-1], final.argmax(1))
    for row, logits in zip(fit.test.scores, exits.values(), strict=True):
        assert torch.allclose(row, logits.amax(1), atol=1e-4)
    assert len(fit.holdout.labels) == len(data.holdout)


def test_calibrating_asks_for_accuracy_and_running_for_real_agrees(once: Once, data: Data) -> None:
    method, model, fit = copy.deepcopy(once)
    calibrate_model(model, fit.holdout, {"max_drop": 1.0}, score=method.score)
    held = replay(fit.holdout, model)
    assert held.accuracy >= fit.holdout.base_accuracy - 0.01 - 1e-9
    assert float(held.macs(model.exit_macs()).double().mean()) < model.cost.total
    real, told = evaluate(model, data.test), replay(fit.test, model)
    assert torch.equal(real.exit_index, told.exit_index)
    assert torch.equal(real.predictions, told.predictions)


def test_thresholds_by_hand(once: Once) -> None:
    method, model, fit = copy.deepcopy(once)
    calibrate_model(model, fit.holdout, {"thresholds": [None, 0.5]}, score=method.score)
    assert model.policy.to_json()["thresholds"] == [None, 0.5]
    with pytest.raises(UsageError, match="1 thresholds for 2 exits"):
        calibrate_model(model, fit.holdout, {"thresholds": [0.5]}, score=method.score)


def test_augmented_passes_and_pooling_are_options(network: nn.Module, data: Data, tmp_path: Path) -> None:
    method = DGate(Gates(sites=("layer1",), pool=2), Train(epochs=2, augment=1))
    traced = trace(network, DIGITS.input.shape)
    steps = method.place(traced, CostModel(traced), 10)
    assert [(step.site, step.pool) for step in steps] == [("layer1", 2)]
    model = AdaptiveModel(traced, place_exits(traced, steps)).eval()
    fit = method.fit(model, data, FitContext(torch.device("cpu"), 256, 0, tmp_path, tmp_path))
    assert model.exits[0].head.linear.in_features == 16 * 4
    assert fit.test.scores.shape == (1, len(data.test))


@pytest.mark.parametrize(
    ("channels", "positions", "side"),
    [(16, 32 * 32, 4), (32, 16 * 16, 4), (64, 8 * 8, 2), (256, 56 * 56, 1), (2048, 49, 1)],
)
def test_a_gate_gets_256_features_by_default(channels: int, positions: int, side: int) -> None:
    site = replace(SITE, channels=channels, positions=positions)
    assert enough_averages(site) == side
    assert channels * side**2 >= 256


@pytest.mark.parametrize(("positions", "side"), [(1, 1), (3, 1), (4, 2), (15, 2), (16, 4)])
def test_there_are_no_more_averages_than_positions(positions: int, side: int) -> None:
    assert enough_averages(replace(SITE, channels=16, positions=positions)) == side


def test_each_gate_is_placed_with_a_grid_of_its_own(network: nn.Module) -> None:
    traced = trace(network, DIGITS.input.shape)
    steps = DGate(Gates(sites=("layer1", "layer3")), Train()).place(traced, CostModel(traced), 10)
    assert [(step.site, step.pool) for step in steps] == [("layer1", 4), ("layer3", 2)]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_gates(
    network: nn.Module, data: Data, once: Once, tmp_path: Path
) -> None:
    first, second = once[1], fitted(network, data, tmp_path)[1]
    assert torch.equal(first.exits[0].head.linear.weight, second.exits[0].head.linear.weight)


def test_records_survive_the_disk(once: Once, tmp_path: Path) -> None:
    _, _, fit = once
    save_records({"holdout": fit.holdout, "test": fit.test}, tmp_path / "records.safetensors")
    again = load_records(tmp_path / "records.safetensors")
    assert torch.equal(again["test"].scores, fit.test.scores)
    assert torch.equal(again["holdout"].predictions, fit.holdout.predictions)
    (tmp_path / "records.safetensors").write_bytes(b"no")
    with pytest.raises(UsageError, match="cannot read the exit records"):
        load_records(tmp_path / "records.safetensors")
