"""Exits with gates that learn who leaves: where they go, what they are asked for, and the digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_network import learned_digits
from exit_nets import PLAIN, exit_steps
from families import Family
from torch import nn

from adaptify.assembly import assemble
from adaptify.data import Data, open_data
from adaptify.errors import TargetError, UsageError
from adaptify.gates.conv_head import ConvHead
from adaptify.gates.exit_head import ExitHead
from adaptify.gates.learned_exit import LearnedExit
from adaptify.graph.cost import CostModel
from adaptify.graph.trace import trace
from adaptify.methods import ExitFit, FitContext, find_method
from adaptify.methods.gumbel_exits import Gates, GumbelExits, Train
from adaptify.models import resolve
from adaptify.plan import PlaceExit
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.policy import GATE, ThresholdPolicy
from adaptify.training.recalibrate import normalisations


@pytest.fixture(scope="module")
def data() -> Data:
    """The embedded digits."""
    return open_data("digits", input=PLAIN.input)


@pytest.fixture(scope="module")
def network(data: Data) -> nn.Module:
    """A small network that has learned the digits for a moment."""
    return learned_digits(data, epochs=4)


def placed(network: nn.Module, gates: dict[str, Any]) -> AdaptiveModel:
    traced = trace(network, PLAIN.input.shape).with_own_tensors()
    torch.manual_seed(0)
    model = assemble(traced, exit_steps("gumbel_exits", traced, **gates))
    assert isinstance(model, AdaptiveModel)
    return model


def fitted(
    network: nn.Module, data: Data, folder: Path, gates: dict[str, Any], train: dict[str, Any]
) -> tuple[AdaptiveModel, ExitFit]:
    """Place and train exits on a copy of `network`."""
    model = placed(network, gates)
    options = {"batch_size": 64, "gate_lr": 0.1, **train}
    method = GumbelExits(Gates.model_validate(gates), Train.model_validate(options))
    method.check(model)
    return model, method.fit(model, data, FitContext(torch.device("cpu"), 256, 0, folder, folder))


def test_it_is_registered() -> None:
    assert find_method("gumbel_exits") is GumbelExits


def test_classifiers_and_gates_go_after_every_stage_but_the_last() -> None:
    traced = trace(PLAIN.build().eval(), PLAIN.input.shape)
    steps = exit_steps("gumbel_exits", traced, width=8)
    assert steps == tuple(
        PlaceExit(site=site, channels=channels, classes=10, head="convolutional", width=8, gate=True)
        for site, channels in (("layer1", 16), ("layer2", 32))
    )
    (step,) = exit_steps("gumbel_exits", traced, sites=("layer2",), head="linear")
    assert isinstance(step, PlaceExit)
    assert (step.site, step.head, step.gate) == ("layer2", "linear", True)


@pytest.mark.parametrize(
    ("arch", "widths"), [("adaptify:digits_resnet", [4, 8]), ("adaptify:cifar_resnet56", [16, 32])]
)
def test_gates_are_as_wide_as_the_network_can_afford(arch: str, widths: list[int]) -> None:
    architecture = resolve(arch)
    traced = trace(architecture.build().eval(), architecture.input.shape)
    steps = exit_steps("gumbel_exits", traced)
    assert [step.width for step in steps if isinstance(step, PlaceExit)] == widths
    model = assemble(traced, steps)
    assert isinstance(model, AdaptiveModel)
    GumbelExits(Gates(), Train()).check(model)  # the default target is within reach
    for head in model.head_macs:
        assert sum(head) < 0.1 * model.cost.total


def test_by_default_leaving_is_cheaper_than_the_network(build_family: Callable[..., Family]) -> None:
    family = build_family("densenet121")
    steps = exit_steps("gumbel_exits", family.traced, family.cost)
    named = tuple(f"features.denseblock{number}" for number in (1, 2, 3))
    assert [step.site for step in steps if isinstance(step, PlaceExit)] == list(named[:2])
    every = exit_steps("gumbel_exits", family.traced, family.cost, sites=named)  # who names it gets it
    assert len(every) == 3
    for chosen, last_saves in ((steps, True), (every, False)):
        model = assemble(family.traced, chosen)
        assert isinstance(model, AdaptiveModel)
        *leaving, _ = model.exit_macs(ThresholdPolicy((0.0,) * len(model.exits), GATE))
        assert (leaving[-1] < model.cost.total) == last_saves


@pytest.mark.parametrize(("head", "kind"), [("convolutional", ConvHead), ("linear", ExitHead)])
def test_nobody_leaves_until_thresholds_are_chosen(head: str, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = PLAIN.build().eval()
    model = placed(network, {"head": head, "width": 4}).eval()
    assert model.policy == ThresholdPolicy((float("inf"),) * 2, GATE)
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(images), network(images))
    for item in model.exits:
        assert isinstance(item.head, LearnedExit)
        assert isinstance(item.head.head, kind)


def test_gates_learn_who_leaves_and_reach_their_target(
    network: nn.Module, data: Data, tmp_path: Path
) -> None:
    options = {"epochs": 6, "target": 0.6, "compute_weight": 10.0}
    model, fit = fitted(network, data, tmp_path, {"width": 4}, options)
    assert fit.score == GATE
    assert fit.temperatures is None
    first, _, output = fit.test.correct
    assert float(output.double().mean()) > 0.95
    # As drawn in training.
    assert fit.history is not None
    last = fit.history.rows[-1]
    assert last.kept is not None
    assert last.kept < 0.7
    names = ("layer1", "layer2", "output")
    assert last.extra.keys() == {f"leave.{name}" for name in names}
    assert sum(last.extra.values()) == pytest.approx(1, abs=1e-3)
    assert last.terms.keys() == {"where samples leave", "everywhere", "compute"}
    # Gates pick samples that their classifier gets right: it is better at those than at all.
    leaves = fit.test.exit_index(ThresholdPolicy((0.0, float("inf")), GATE)) == 0
    assert 0.2 < float(leaves.double().mean()) < 1
    assert float(first[leaves].double().mean()) > float(first.double().mean())
    # What was noted is what the gates say.
    images, labels = next(data.test.batches(len(data.test)))
    assert torch.equal(labels, fit.test.labels)
    with torch.no_grad():
        odds = torch.stack(list(model.everything(images).gates.values()))
    torch.testing.assert_close(fit.test.scores, odds, rtol=1e-3, atol=1e-3)


def test_statistics_of_classifiers_and_gates_are_taken_anew(
    network: nn.Module, data: Data, tmp_path: Path
) -> None:
    """They are not run in evaluation while nobody leaves: they must not be forgotten for that."""
    model, _ = fitted(network, data, tmp_path, {"width": 4}, {"epochs": 1, "target": 1.0})
    for item in model.exits:
        assert item.head is not None
        assert len(normalisations(item.head)) == 4
        for norm in normalisations(item.head):
            assert norm.running_mean is not None
            assert bool(norm.running_mean.any())


@pytest.mark.parametrize("gates", [{"head": "linear", "width": 4}, {"width": 4}], ids=str)
def test_without_epochs_nothing_changes(
    gates: dict[str, Any], network: nn.Module, data: Data, tmp_path: Path
) -> None:
    before = placed(network, gates).state_dict()
    model, fit = fitted(network, data, tmp_path, gates, {"epochs": 0})
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert fit.holdout.scores.shape == (2, len(data.holdout))


def test_a_target_that_no_exit_reaches_is_refused(network: nn.Module, data: Data, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"train\.target=0.4 is out of reach: .* layer1, takes 48\.2%"):
        fitted(network, data, tmp_path, {"width": 4}, {"epochs": 1, "target": 0.4})


def test_the_same_seed_gives_the_same_network(network: nn.Module, data: Data, tmp_path: Path) -> None:
    options = {"epochs": 1, "target": 0.6, "distill": {"weight": 1.0, "temperature": 4.0}, "ema": 0.9}
    (first, told), (second, _) = (
        fitted(network, data, tmp_path / name, {"width": 4}, options) for name in ("first", "second")
    )
    assert told.history is not None
    assert "distillation" in told.history.rows[0].terms
    ours, theirs = first.state_dict(), second.state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())


def test_sites_that_are_none_are_refused() -> None:
    traced = trace(PLAIN.build().eval(), PLAIN.input.shape)
    with pytest.raises(UsageError, match="no exit site is called 'layer7'"):
        exit_steps("gumbel_exits", traced, CostModel(traced), sites=("layer7",))
