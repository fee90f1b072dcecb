"""Networks whose gates look at samples, for the tests of what runs them: forced gates, and forced costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from families import scramble
from torch import Tensor, nn

from adaptify.assembly import assemble
from adaptify.graph.cost import CostModel
from adaptify.graph.gating import Decide
from adaptify.graph.trace import Traced, trace
from adaptify.methods import find_method
from adaptify.models.cifar_resnet import CifarResNet
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.skipping.costs import BlockCost
from adaptify.runtime.skipping.model import SkippingModel

CPU = torch.device("cpu")

KINDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "masks": ("sgad", {}),
    "layers": ("gumbel", {"kind": "dependent", "granularity": "layer"}),
    "layers by stage": ("gumbel", {"kind": "dependent", "granularity": "layer", "per": "stage"}),
    "channels": ("gumbel", {"kind": "dependent", "positions": ("channels",)}),
    "all channels": ("gumbel", {"kind": "dependent"}),
    "all channels by stage": ("gumbel", {"kind": "dependent", "per": "stage"}),
    "saliences": ("lcnet", {}),
    "parallel saliences": ("lcnet", {"execution": "parallel"}),
    "parallel saliences of layers": ("lcnet", {"nets": ("layer",), "execution": "parallel"}),
    "saliences of channels": ("lcnet", {"nets": ("channel",)}),
}
"""Method and options of its gates, by what they close."""

WAYS: Mapping[str, BlockCost] = {
    # Nothing takes time but to run rows apart.
    "together": BlockCost(fixed=0.0, row=0.0, move=0.0),
    # Rows take time, but not enough to build a program for them.
    "apart": BlockCost(fixed=0.0, row=1e-4, move=0.0),
    # Rows take so long that a program for some channels pays at once.
    "narrow": BlockCost(fixed=0.0, row=1e3, move=0.0),
}
"""Costs under which blocks run in one of the ways that there are."""


def place(traced: Traced, kind: str, cost: CostModel | None = None) -> GatedModel:
    """Put gates of a kind into `traced`, untrained, in evaluation mode."""
    name, options = KINDS[kind]
    method = find_method(name)
    gates, train = method.Gates.model_validate(options), method.Train()
    steps = method(gates, train).place(traced, cost or CostModel(traced), 10)  # type: ignore[attr-defined]
    torch.manual_seed(0)
    model = assemble(traced, steps)
    assert isinstance(model, GatedModel)
    return model.eval()


def cifar(shortcut: str = "B", blocks: int | tuple[int, ...] = (1, 2, 1), size: int = 16) -> Traced:
    """A small CIFAR ResNet in which all channels matter; its first two blocks read the same shape."""
    torch.manual_seed(0)
    return trace(scramble(CifarResNet(blocks=blocks, shortcut=shortcut)), (3, size, size))


def traced_net(net: nn.Module, shape: tuple[int, ...]) -> Traced:
    """`net` as a graph, in evaluation mode."""
    return trace(net.eval(), shape)  # type: ignore[arg-type]


def forced(model: GatedModel, gates: Tensor) -> Decide:
    """Decides as `gates` (N, K) say, whatever the networks of the gates do; for one batch."""
    parts: Iterator[Tensor] = iter(gates.split([decider.gates for decider in model.deciders], 1))
    return lambda odds: next(parts)


def draw(model: GatedModel, rows: int, *, seed: int, patterns: int = 0) -> Tensor:
    """Gates (rows, K), most of them open; saliences scale. All rows differ, or there are some patterns."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(site.gates for site in model.sites)
    table = (torch.rand(patterns or rows, count, generator=generator) < 0.65).float()
    gates = table[torch.arange(rows) % len(table)]
    if not model.policy.variants():  # saliences
        gates = gates * (0.25 + 0.75 * torch.rand(rows, count, generator=generator))
    return gates


def images_for(model: GatedModel, rows: int, seed: int = 1) -> Tensor:
    """Seeded random images."""
    return torch.randn(rows, *model.traced.input_shape, generator=torch.Generator().manual_seed(seed))


def set_cost(fast: SkippingModel, cost: BlockCost) -> None:
    """Let every block take `cost`."""
    for block in fast.blocks:
        block.cost = cost


def row_difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference in a row, relative to the largest value that is wanted of it."""
    assert found.shape == wanted.shape
    assert torch.isfinite(wanted).all()
    scale = wanted.abs().amax(1)
    assert float(scale.min()) > 1e-3
    return float(((found - wanted).abs().amax(1) / scale).max())
