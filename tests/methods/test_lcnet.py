"""LC-Net: nothing changes at first, saliences scale exactly, and on the digits they reach their target."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_network import learned_digits
from families import Family
from gated_nets import DIGITS
from torch import Tensor, nn

from adaptify.assembly import assemble
from adaptify.data import Data, open_data
from adaptify.errors import ModelError, TargetError
from adaptify.gates.salience import SalienceNet, leaky_relu1
from adaptify.graph.cost import CostModel, count_module
from adaptify.graph.sites import find_blocks
from adaptify.graph.trace import Traced, trace
from adaptify.methods import FitContext, GateFit, find_method
from adaptify.methods.lcnet import Gates, LcNet, Train
from adaptify.models.cifar_resnet import CifarResNet
from adaptify.plan import PlaceSaliences
from adaptify.runtime.gated import GatedModel
from adaptify.training.gate_records import observe_gates

CPU = torch.device("cpu")


def placed(traced: Traced, cost: CostModel | None = None, **gates: Any) -> GatedModel:
    """`traced` with fresh saliences, in evaluation mode."""
    method = LcNet(Gates.model_validate(gates), Train())
    model = assemble(traced, method.place(traced, cost or CostModel(traced), 10))
    assert isinstance(model, GatedModel)
    return model.eval()


def say(model: GatedModel, raw: Callable[[int], Tensor]) -> None:
    """Let every net say `raw(G)` whatever it sees."""
    with torch.no_grad():
        for decider in model.deciders:
            assert isinstance(decider.module, SalienceNet)
            decider.module.linear.bias.copy_(raw(decider.gates))


def test_it_is_registered() -> None:
    assert find_method("lcnet") is LcNet


def test_a_fresh_network_is_its_checkpoint(family: Family) -> None:
    if not find_blocks(family.traced, family.cost):
        with pytest.raises(ModelError, match="no residual block") as caught:
            placed(family.traced, family.cost)
        assert "dgate" in caught.value.hint
        return
    model = placed(family.traced, family.cost)
    with torch.no_grad():
        decisions = model.run(family.images)
    assert bool((decisions.gates == 1).all())
    # A factor of 1 changes no bit, but kernels may add up in another order behind another layout.
    torch.testing.assert_close(decisions.logits, family.logits, rtol=1e-5, atol=1e-5)


class Block(nn.Module):
    """x + out(relu(norm(inner(x)))), 4 channels outside and 3 inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.out = nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)

    def branch(self, x: Tensor, saliences: Tensor) -> Tensor:
        """The branch, its inner channels scaled by (3,)."""
        return self.out(torch.relu(self.norm(self.inner(x))) * saliences.view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(torch.relu(self.norm(self.inner(x))))


def toy() -> tuple[nn.Sequential, GatedModel]:
    """One such block between a stem and a head, and the same with saliences."""
    torch.manual_seed(0)
    stem, head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)
    net = nn.Sequential(stem, Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()
    return net, placed(trace(net, (3, 8, 8)))


@pytest.mark.parametrize("training", [False, True])
def test_saliences_scale_the_branch_and_its_channels_by_hand(training: bool) -> None:
    net, model = toy()
    raw = torch.tensor([0.5, 0.25, -0.5, 1.75])
    say(model, lambda count: raw)
    block = net[1]
    assert isinstance(block, Block)
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    saliences = leaky_relu1(raw) if training else torch.tensor([0.5, 0.25, 0.0, 1.0])
    with torch.no_grad():
        x = net[0](images)
        expected = net[2:](x + saliences[0] * block.branch(x, saliences[1:]))
        decide = model.sample if training else model.policy.decide
        found = model.decide(images, decide)
    torch.testing.assert_close(found.gates, saliences.expand(2, 4))
    torch.testing.assert_close(found.logits, expected)


def test_the_place_of_each_salience_and_what_each_execution_counts() -> None:
    net, model = toy()
    assert [(site.name, site.position, site.gates) for site in model.sites] == [
        ("1", "layer", 1),
        ("1.inner", "channels", 3),
    ]
    inner, out, rest = 64 * 9 * 4 * 3, 64 * 3 * 4, 64 * 9 * 3 * 4 + 8
    two_of_three, none = torch.tensor([1, 1, 1, 0]), torch.tensor([0, 1, 1, 0])
    parallel = placed(trace(net, (3, 8, 8)), execution="parallel")
    assert int(model.gate_cost(two_of_three)) == rest + 2 * (inner + out) // 3
    assert int(parallel.gate_cost(two_of_three)) == rest + inner + 2 * out // 3
    assert int(model.gate_cost(none)) == rest
    assert int(parallel.gate_cost(none)) == rest + inner
    assert model.gate_cost.total == parallel.gate_cost.total == rest + inner + out


@pytest.mark.parametrize(("nets", "positions"), [(("layer",), {"layer"}), (("channel",), {"channels"})])
def test_each_net_can_be_alone(nets: tuple[str, ...], positions: set[str]) -> None:
    traced = trace(DIGITS.build().eval(), DIGITS.input.shape)
    model = placed(traced, nets=nets)
    assert {site.position for site in model.sites} == positions
    assert len(model.deciders) == 3


def test_the_nets_cost_next_to_nothing() -> None:
    """By hand: of a block from C to C' channels, C (1 + C') weights, and a bias for each salience."""
    net = CifarResNet(blocks=5).eval()  # ResNet-32
    model = placed(trace(net, (3, 32, 32)))
    sizes = [(16, 16)] * 5 + [(16, 32)] + [(32, 32)] * 4 + [(32, 64)] + [(64, 64)] * 4
    by_hand = sum(source * (1 + inner) for source, inner in sizes)
    assert model.decider_macs == by_hand == 24_832
    assert model.decider_macs == sum(
        count_module(item.module, (1, source, 4, 4))
        for item, (source, _) in zip(model.deciders, sizes, strict=True)
    )
    assert sum(parameter.numel() for parameter in model.gate_parameters) == by_hand + 575
    assert model.decider_macs < 0.0004 * model.cost.total


@pytest.fixture(scope="module")
def data() -> Data:
    """The embedded digits."""
    return open_data("digits", input=DIGITS.input)


@pytest.fixture(scope="module")
def network(data: Data) -> nn.Module:
    """A small network that has learned the digits for a moment."""
    return learned_digits(data, epochs=4)


def fitted(
    network: nn.Module, data: Data, folder: Path, train: dict[str, Any], **gates: Any
) -> tuple[GatedModel, GateFit]:
    """Place and train saliences on a copy of `network`."""
    model = placed(trace(copy.deepcopy(network), DIGITS.input.shape), **gates)
    method = LcNet(Gates.model_validate(gates), Train.model_validate({"batch_size": 32, **train}))
    method.check(model)
    return model, method.fit(model, data, FitContext(CPU, 256, 0, folder, folder))


def test_saliences_reach_their_target_and_keep_accuracy(
    network: nn.Module, data: Data, tmp_path: Path
) -> None:
    before = observe_gates(placed(trace(network, DIGITS.input.shape)), data.test)
    assert before.accuracy > 0.9
    model, fit = fitted(network, data, tmp_path, {"epochs": 8, "target": 0.5})
    assert not model.training
    seen = observe_gates(model, data.test)
    assert seen.kept == pytest.approx(0.5, abs=0.06)
    assert seen.accuracy > before.accuracy - 0.03
    # What is computed depends on the sample.
    assert float(seen.macs.std()) > 0
    kept = [row.validation.kept or 0 for row in fit.history.rows]
    assert kept[0] > kept[-1]
    assert len(fit.activity) == 8
    assert all(len(row) == len(model.sites) for row in fit.activity)
    assert fit.history.rows[-1].terms.keys() == {"cross_entropy", "layers", "channels"}


@pytest.mark.parametrize(
    ("train", "gates"),
    [
        ({"target": 0.7}, {"execution": "parallel"}),
        ({"target": 0.8}, {"nets": ("channel",)}),
        ({"target": None, "l1_layer": 0.0, "l1_channel": 3.0}, {}),
        ({"distill": {"weight": 1.0, "temperature": 4.0}, "keep": "best"}, {}),
    ],
    ids=str,
)
def test_the_other_variants_learn_too(
    train: dict[str, Any], gates: dict[str, Any], network: nn.Module, data: Data, tmp_path: Path
) -> None:
    model, fit = fitted(network, data, tmp_path, {"epochs": 4, **train}, **gates)
    seen = observe_gates(model, data.test)
    assert seen.accuracy > 0.85
    assert seen.kept < 0.95
    assert len(fit.history.rows) == 4


def test_l1_shrinks_what_nothing_else_holds(network: nn.Module, data: Data, tmp_path: Path) -> None:
    def means(l1: float) -> tuple[float, ...]:
        train = {"epochs": 1, "target": None, "l1_channel": l1, "gate_lr": 1e-3}
        _, fit = fitted(network, data, tmp_path / str(l1), train, nets=("channel",))
        return fit.activity[-1]

    assert all(less < more - 0.05 for less, more in zip(means(20.0), means(0.0), strict=True))


def test_a_target_that_cannot_be_met_is_refused(network: nn.Module, data: Data, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="out of reach"):
        fitted(network, data, tmp_path, {"target": 0.4}, execution="parallel")


def test_blocks_without_channels_to_close_have_a_layer_gate_alone(
    build_family: Callable[..., Family],
) -> None:
    convnext = build_family("convnext_tiny")
    step = LcNet(Gates(), Train()).place(convnext.traced, convnext.cost, 10)[0]
    assert isinstance(step, PlaceSaliences)
    assert {place.position for place in step.sites} == {"layer"}
    with pytest.raises(ModelError, match="no residual block with channels"):
        placed(convnext.traced, convnext.cost, nets=("channel",))
