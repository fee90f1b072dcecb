"""Freezing: the smaller network is the gated one, costs what was predicted, and is one like any other."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from families import GatedFamily, scramble
from gated_nets import close, difference, gated, gated_digits, shake
from torch import Tensor, nn

import adaptify
from adaptify.assembly import place_exits
from adaptify.errors import ModelError, TargetError
from adaptify.freeze import Frozen, freeze
from adaptify.gates.gumbel import IndependentGates
from adaptify.graph.cost import CostModel
from adaptify.graph.gating import slices_of
from adaptify.graph.program import compile_graph
from adaptify.graph.sites import find_exits
from adaptify.graph.trace import trace
from adaptify.models.cifar_resnet import CifarResNet
from adaptify.plan import DecoupleBlocks, PlaceExit, RemoveBlocks, RemoveChannels
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.gate_policy import GatePolicy
from adaptify.runtime.gated import GatedModel


def run(frozen: Frozen, images: Tensor) -> Tensor:
    with torch.no_grad():
        return compile_graph(frozen.traced.graph)(frozen.traced.root.eval(), images)


def images_of(model: GatedModel, count: int = 2) -> Tensor:
    return torch.randn(count, *model.traced.input_shape, generator=torch.Generator().manual_seed(7))


def deviation(model: GatedModel, frozen: Frozen, images: Tensor | None = None) -> float:
    """How far the frozen network, and its reference, are from the gated one whose threshold decided."""
    images = images_of(model) if images is None else images
    with torch.no_grad():
        wanted = model(images)
        reference = frozen.reference(images)
    assert not frozen.moved
    assert CostModel(frozen.traced).total == frozen.macs
    return max(difference(run(frozen, images), wanted), difference(reference, wanted))


def open_gates(model: GatedModel) -> Tensor:
    return model.policy.decide(model.odds()).long()


def keep_some(model: GatedModel, seed: int = 0) -> GatedModel:
    """Open and close gates by chance, so that no site is left without channels."""
    shake(model, seed)
    (decider,) = model.deciders
    assert isinstance(decider.module, IndependentGates)
    with torch.no_grad():
        for site, place in zip(decider.sites, slices_of(decider.sites), strict=True):
            if not site.always_open:
                decider.module.logits[:, place.start] = torch.tensor([-1.0, 1.0])
    return model


def test_frozen_families_are_the_gated_ones(gated_family: GatedFamily) -> None:
    model = keep_some(gated_family.channels)
    gates = open_gates(model)
    assert not gates.all()
    frozen = freeze(model)
    assert deviation(model, frozen, gated_family.images) <= 1e-5
    # No group is empty: the cost that training sees is exact.
    assert int(model.gate_cost(gates)) == frozen.macs < model.cost.total


@pytest.mark.slow
@pytest.mark.parametrize("shift", [-1.0, 0.0, 1.0])
def test_frozen_families_bear_any_gates(gated_family: GatedFamily, shift: float) -> None:
    model = shake(gated_family.channels, seed=2, shift=shift)
    assert deviation(model, freeze(model), gated_family.images) <= 1e-5


def test_families_lose_the_layers_that_gates_close(gated_family: GatedFamily) -> None:
    model, images = gated_family.layers(), gated_family.images
    with torch.no_grad():
        opened = model.decide(images, torch.ones_like).logits
        assert torch.equal(opened, compile_graph(gated_family.traced.graph)(model.traced.root, images))
    close(model, *[site.name for site in model.sites][::2])
    frozen = freeze(model)
    assert deviation(model, frozen, images) <= 1e-5
    assert int(model.gate_cost(open_gates(model))) == frozen.macs
    (step,) = frozen.steps
    assert isinstance(step, RemoveBlocks)
    assert step.blocks == tuple(block.name for block in gated_family.blocks[::2])


def ptflops(model: nn.Module, shape: tuple[int, ...]) -> int:
    """MACs as ptflops counts them, less one for each bias of the classifier, which it adds."""
    counter = pytest.importorskip("ptflops")
    macs, _ = counter.get_model_complexity_info(
        model, shape, as_strings=False, print_per_layer_stat=False, backend="aten", ost=io.StringIO()
    )
    return int(macs)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_macs_are_those_that_ptflops_counts(name: str, build_family) -> None:
    family = GatedFamily(build_family(name))
    model = shake(family.channels)
    frozen = freeze(model)
    biases = 1000
    assert ptflops(frozen.traced.root.eval(), model.traced.input_shape) == frozen.macs + biases


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("seed", range(4))
def test_frozen_networks_of_basic_blocks_are_the_gated_ones(shortcut: str, seed: int) -> None:
    torch.manual_seed(0)
    traced = trace(scramble(CifarResNet(blocks=2, shortcut=shortcut)), (3, 32, 32))
    model = shake(gated(traced, filters=4), seed, shift=(-1.0, 0.0, 0.5, 2.0)[seed])
    assert deviation(model, freeze(model)) <= 1e-5


def test_blocks_that_lose_everything_are_gone() -> None:
    model = close(digits(), "adapters.layer2.0.gather", "layer2.0.conv1", "layer3.0.conv2")
    frozen = freeze(model)
    assert deviation(model, frozen) <= 1e-5
    left = {name for name, module in frozen.traced.root.named_modules() if isinstance(module, nn.Conv2d)}
    assert left == {"conv1", "layer1.0.conv1", "layer1.0.conv2"}


def test_the_threshold_decides() -> None:
    model = digits()
    (decider,) = model.deciders
    with torch.no_grad():
        decider.module.logits.copy_(torch.tensor([[0.0], [0.5]]).expand(2, decider.gates))
    tau = torch.sigmoid(torch.tensor(0.5)).item()
    model.policy = GatePolicy(tau=tau - 0.01)
    assert freeze(model).macs == model.cost.total
    model.policy = GatePolicy(tau=tau + 0.01)
    assert freeze(model).macs == model.gate_cost.least


def digits(**options: object) -> GatedModel:
    model = gated_digits(**options)
    scramble(model.traced.root)
    return model


@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize("target", [0.9, 0.6, 0.35, 0.2])
def test_a_target_is_met_in_the_order_of_the_gates(target: float, round_to: int) -> None:
    model = shake(digits(filters=2))
    frozen = freeze(model, target, round_to=round_to)
    assert frozen.moved
    assert frozen.macs == pytest.approx(target * model.cost.total, rel=0.01)
    assert CostModel(frozen.traced).total == frozen.macs
    images = images_of(model)
    assert difference(run(frozen, images), frozen.reference(images).detach()) <= 1e-5
    # What is left of a site are the channels whose gates are the most likely to be open.
    odds = by_gate(model)
    for name, entry in step_of(frozen).keep.items():  # nothing without gates is named
        left = set(entry.kept)
        out = [odds[name][channel] for channel in range(entry.size) if channel not in left]
        if left and out:
            assert min(odds[name][channel] for channel in left) >= max(out) - 1e-6


def step_of(frozen: Frozen) -> RemoveChannels:
    (step,) = frozen.steps
    assert isinstance(step, RemoveChannels)
    return step


def by_gate(model: GatedModel) -> dict[str, list[float]]:
    """Site name -> the log-odds of each channel's gate; infinite without one."""
    odds = model.odds().tolist()
    found, start = {}, 0
    for site in model.sites:
        own = [float("inf"), *odds[start : start + site.gates]]
        found[site.name] = [own[gate] for gate in site.gate_of()]
        start += site.gates
    return found


def test_a_target_that_the_threshold_meets_moves_nothing() -> None:
    model = shake(digits())
    plain = freeze(model)
    again = freeze(model, plain.macs / model.cost.total * 1.005)
    assert not again.moved
    assert again.steps == plain.steps


def test_rounding_changes_little_and_is_no_target() -> None:
    model = shake(digits(filters=1))
    plain = freeze(model)
    rounded = freeze(model, round_to=4)
    assert not rounded.moved
    assert rounded.macs == pytest.approx(plain.macs, rel=0.01)
    assert CostModel(rounded.traced).total == rounded.macs
    own = {site.name for site in model.sites}
    kept = step_of(rounded).keep
    assert all(len(entry.kept) % 4 == 0 for name, entry in kept.items() if name in own)


def test_layers_meet_a_target_that_some_of_them_make() -> None:
    model = close(digits(granularity="layer"))
    (decider,) = model.deciders
    with torch.no_grad():
        decider.module.logits[1] = torch.tensor([3.0, 1.0, 2.0])
    one, two = (
        int(model.gate_cost(torch.tensor(gates))) / model.cost.total for gates in ([1, 0, 0], [1, 0, 1])
    )
    for target, closed in ((two, ("layer2.0",)), (one, ("layer2.0", "layer3.0"))):
        frozen = freeze(model, target)
        assert frozen.moved
        assert frozen.steps == (RemoveBlocks(blocks=closed),)
        assert CostModel(frozen.traced).total == frozen.macs == round(target * model.cost.total)
        images = images_of(model)
        assert difference(run(frozen, images), frozen.reference(images).detach()) <= 1e-5
    with pytest.raises(TargetError, match="no number of blocks is within 1% of") as caught:
        freeze(model, (one + two) / 2)
    assert caught.value.exit_code == 5
    # What the message offers is what can be asked for.
    offered = float(str(caught.value).split("the nearest is ")[1].split()[0])
    assert min(abs(offered - one), abs(offered - two)) < 0.001


def test_a_target_out_of_reach_is_refused() -> None:
    model = shake(digits(positions=("channels",)))
    least = freeze(close(model, *[site.name for site in model.sites])).macs / model.cost.total
    with pytest.raises(TargetError, match=f"0.001 of the MACs cannot be reached: the least is {least:.3g}"):
        freeze(model, 0.001)
    # Just what there is without what has gates.
    everything = freeze(shake(model), least)
    assert everything.macs == round(least * model.cost.total)
    assert step_of(everything).keep.keys() == {site.name for site in model.sites}
    assert not any(entry.kept for entry in step_of(everything).keep.values())


@pytest.mark.parametrize("granularity", ["channel", "layer"])
def test_gates_that_look_at_samples_are_refused(granularity: str) -> None:
    with pytest.raises(ModelError, match="look at the sample") as caught:
        freeze(digits(kind="dependent", granularity=granularity))
    assert caught.value.hint is not None
    assert "gates.kind=independent" in caught.value.hint


def test_the_gated_network_is_left_alone() -> None:
    model = shake(digits())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = freeze(model)
    with torch.no_grad():
        for parameter in frozen.traced.root.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert before.keys() == model.state_dict().keys()


@pytest.mark.parametrize("granularity", ["channel", "layer"])
def test_frozen_networks_train_on_and_trace_again(granularity: str) -> None:
    model = digits(granularity=granularity)
    if granularity == "layer":
        close(model, "layer2.0")
    else:
        shake(model)
    frozen = freeze(model)
    network = AdaptiveModel(frozen.traced).train()
    images, labels = images_of(model, 16), torch.arange(16) % 10
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images)[0], labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    again = trace(copy.deepcopy(frozen.traced.root).eval(), frozen.traced.input_shape)
    assert CostModel(again).total == frozen.macs
    with torch.no_grad():
        assert torch.equal(compile_graph(again.graph)(again.root.eval(), images), run(frozen, images))


@pytest.mark.parametrize("granularity", ["channel", "layer"])
def test_frozen_networks_are_saved_and_take_exits(granularity: str, tmp_path: Path) -> None:
    model = digits(granularity=granularity)
    if granularity == "layer":
        close(model, "layer1.0", "layer3.0")
    else:
        shake(model)
    frozen = freeze(model)
    assert model.plan is not None
    body = tuple(step for step in model.plan.steps if isinstance(step, DecoupleBlocks))
    assert len(body) == (granularity == "channel")
    sites = {site.name: site for site in find_exits(frozen.traced, CostModel(frozen.traced))}
    exits = (PlaceExit(site="layer1", channels=sites["layer1"].channels, classes=10),)
    images = images_of(model, 5)
    for steps in ((), exits):
        network = AdaptiveModel(frozen.traced, place_exits(frozen.traced, steps)).eval()
        network.plan = model.plan.model_copy(update={"steps": (*body, *frozen.steps, *steps)})
        adaptify.save(network, tmp_path / "small.safetensors")
        again = adaptify.load(tmp_path / "small.safetensors")
        assert isinstance(again, AdaptiveModel)
        assert again.cost.total == frozen.macs
        with torch.no_grad():
            assert torch.equal(again.dense(images)[0], run(frozen, images))
            ours, theirs = again.run(images), network.run(images)
        assert torch.equal(ours.logits, theirs.logits)
        assert len(again.exits) == len(steps)
