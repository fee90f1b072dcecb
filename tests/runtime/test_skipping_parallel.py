"""The first layer of a block beside its saliences: it runs in full, and the rest for what they leave open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from skipping_nets import (
    CPU,
    WAYS,
    cifar,
    draw,
    forced,
    images_for,
    place,
    row_difference,
    set_cost,
    traced_net,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from adaptify.runtime.gated import GatedModel
from adaptify.runtime.optimize import optimize
from adaptify.runtime.skipping.costs import BlockCost
from adaptify.runtime.skipping.model import SkippingModel


class Layers(TorchDispatchMode):
    """Takes down the convolutions that run.

    Attributes:
        ran: (rows, channels that are read, channels that are written) of each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[tuple[int, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            x, weight = args[:2]
            self.ran.append((len(x), weight.shape[1], weight.shape[0]))
        return func(*args, **(kwargs or {}))


class Block(nn.Module):
    """x + f(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(torch.relu(self.inner(x)))


def toy(kind: str) -> GatedModel:
    """A stem and two blocks 4 -> 6 -> 4, with saliences."""
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return place(traced_net(nn.Sequential(nn.Conv2d(3, 4, 1), Block(), Block(), *head), (3, 8, 8)), kind)


@pytest.fixture
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions that are not packed: those are not seen by what counts."""
    monkeypatch.setattr("adaptify.runtime.fast.can_fuse", lambda: False)


def layers_run(model: GatedModel, cost: BlockCost, gates: Tensor) -> list[tuple[int, int, int]]:
    """The convolutions that run when everything has been seen once."""
    fast = SkippingModel(model, CPU)
    set_cost(fast, cost)
    images = images_for(model, len(gates))
    layers = Layers()
    with torch.no_grad():
        fast.decide(images, forced(model, gates))
        with layers:
            fast.decide(images, forced(model, gates))
    return layers.ran


def toy_gates(rows: int, runs: tuple[int, int], channels: int = 6) -> Tensor:
    """Gates (rows, 14): the first rows run the two blocks, with the first channels."""
    opened = (torch.arange(6) < channels).float().expand(rows, 6)
    layer = [(torch.arange(rows) < count).float().unsqueeze(1) for count in runs]
    return torch.cat([layer[0], opened, layer[1], opened], 1)


@pytest.mark.usefixtures("_plain")
@pytest.mark.parametrize("runs", [(5, 5), (3, 1), (0, 2), (0, 0)])
def test_the_first_layer_runs_for_all_images_and_what_follows_for_some(runs: tuple[int, int]) -> None:
    ran = layers_run(toy("parallel saliences"), WAYS["apart"], toy_gates(5, runs))
    wanted = [(5, 3, 4)]
    for count in runs:
        wanted += [(5, 4, 6), *([(count, 6, 4)] if count else [])]
    assert ran == wanted


@pytest.mark.usefixtures("_plain")
def test_what_follows_reads_the_channels_that_are_open() -> None:
    ran = layers_run(toy("parallel saliences"), WAYS["narrow"], toy_gates(5, (4, 5), channels=2))
    assert ran == [(5, 3, 4), (5, 4, 6), (4, 2, 4), (5, 4, 6), (5, 2, 4)]


@pytest.mark.usefixtures("_plain")
def test_in_sequence_the_first_layer_waits_for_the_saliences() -> None:
    ran = layers_run(toy("saliences"), WAYS["narrow"], toy_gates(5, (4, 5), channels=2))
    assert ran == [(5, 3, 4), (4, 4, 2), (4, 2, 4), (5, 4, 2), (5, 2, 4)]


@pytest.mark.usefixtures("_plain")
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("kind", ["saliences", "parallel saliences", "parallel saliences of layers"])
def test_what_is_counted_is_what_runs(kind: str, scale: float) -> None:
    model = place(cifar(), kind)
    fast = SkippingModel(model, CPU)
    set_cost(fast, WAYS["narrow"])
    images = images_for(model, 1)
    gates = (draw(model, 1, seed=3) > 0).float() * scale
    layers = [site.position == "layer" for site in model.sites for _ in range(site.gates)]
    closed = gates.clone()
    closed[:, torch.tensor(layers).nonzero()[1:3].flatten()] = 0
    with torch.no_grad():
        for opened in (gates, closed):
            fast.decide(images, forced(model, opened))
            with FlopCounterMode(display=False) as counter:
                fast.decide(images, forced(model, opened))
            macs = int(model.gate_cost((opened > 0).long())) + model.decider_macs
            assert counter.get_total_flops() == 2 * macs


@pytest.mark.parametrize("way", WAYS)
def test_skipping_is_masking_in_batches_of_any_size(way: str) -> None:
    model = place(cifar(size=8), "parallel saliences")
    fast = SkippingModel(model, CPU)
    set_cost(fast, WAYS[way])
    with torch.inference_mode():
        for rows in (1, 2, 7, 64):
            images = images_for(model, rows)
            patterns = 3 if way == "narrow" else 0
            some = draw(model, rows, seed=rows, patterns=patterns)
            for gates in (some, some, torch.zeros_like(some), torch.ones_like(some), (some > 0).float()):
                wanted = model.decide(images, forced(model, gates)).logits
                found = fast.decide(images, forced(model, gates)).logits
                assert row_difference(found, wanted) <= 1e-5


def test_costs_are_those_of_what_follows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same blocks in sequence and in parallel are measured apart."""
    monkeypatch.setenv("ADAPTIFY_CACHE", str(tmp_path))
    stored = []
    for kind in ("saliences", "parallel saliences", "saliences"):
        optimize(place(cifar(size=8), kind))
        stored.append(len(json.loads((tmp_path / "block-costs.json").read_text())["costs"]))
    assert stored[1] == 2 * stored[0]
    assert stored[2] == stored[1]
