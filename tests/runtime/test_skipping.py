"""What gates close is left out, and each image gets what computing everything under masks would give it."""

from __future__ import annotations

import pytest
import torch
from families import GatedFamily
from gated_nets import gated
from skipping_nets import (
    CPU,
    KINDS,
    WAYS,
    cifar,
    draw,
    forced,
    images_for,
    place,
    row_difference,
    set_cost,
)
from torch import Tensor, nn
from torch.nn import functional

from adaptify.errors import ModelError
from adaptify.graph.trace import trace
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.skipping.costs import BlockCost
from adaptify.runtime.skipping.model import SkippingModel

# Where each row costs this much less than moving it, all rows are run.
NEVER_MOVE = BlockCost(fixed=0.0, row=1e-4, move=1.0)

TOLERANCE = 1e-5


def scenes(model: GatedModel, rows: int) -> list[Tensor]:
    """Gates that come one batch after the other: the second finds programs built, and the third is served
    by those for more than it needs."""
    gates = draw(model, rows, seed=rows, patterns=3)
    fewer = gates * draw(model, rows, seed=100, patterns=2)
    return [
        gates,
        gates,
        fewer,
        torch.zeros_like(gates),
        torch.ones_like(gates),
        draw(model, rows, seed=7),
        gates,
    ]


def worst(model: GatedModel, costs: list[BlockCost], batches: tuple[int, ...] = (1, 2, 7)) -> float:
    """Hold the fast form against the network under masks: the largest difference of a row, relative."""
    fast = SkippingModel(model, CPU)
    differences = []
    with torch.inference_mode():
        for cost in costs:
            set_cost(fast, cost)
            for rows in batches:
                images = images_for(model, rows)
                before = images.clone()
                earlier: list[tuple[Tensor, Tensor]] = []
                for gates in scenes(model, rows):
                    wanted = model.decide(images, forced(model, gates))
                    found = fast.decide(images, forced(model, gates))
                    differences.append(row_difference(found.logits, wanted.logits))
                    assert torch.equal(found.gates, gates)
                    torch.testing.assert_close(found.odds, wanted.odds, rtol=1e-4, atol=1e-4)
                    earlier.append((found.logits, found.logits.clone()))
                assert torch.equal(images, before)
                # No later batch wrote over what an earlier one was given.
                assert all(torch.equal(mine, copy) for mine, copy in earlier)
    return max(differences)


# Many programs are built, of kinds that differ from others in little.
DEAR = {("all channels by stage", "narrow"), ("saliences of channels", "narrow")}


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        pytest.param(kind, way, marks=pytest.mark.slow if (kind, way) in DEAR else ())
        for kind in KINDS
        for way in WAYS
    ],
)
def test_skipping_is_masking(kind: str, way: str) -> None:
    assert worst(place(cifar(), kind), [WAYS[way]], (1, 2, 7) if way != "narrow" else (1, 7)) <= TOLERANCE


@pytest.mark.parametrize("kind", ["masks", "all channels", "saliences", "parallel saliences"])
def test_skipping_is_masking_where_shortcuts_have_no_weights(kind: str) -> None:
    assert worst(place(cifar("A"), kind), [NEVER_MOVE, *WAYS.values()], (3,)) <= TOLERANCE


@pytest.mark.parametrize("kind", ["masks", "saliences"])
def test_skipping_is_masking_in_large_batches(kind: str) -> None:
    assert (
        worst(place(cifar(blocks=1, size=8), kind), [NEVER_MOVE, WAYS["together"], WAYS["apart"]], (64,))
        <= TOLERANCE
    )


@pytest.mark.parametrize("kind", ["masks", "saliences", "parallel saliences"])
def test_skipping_is_masking_behind_squeeze_and_excitation(kind: str, build_family) -> None:
    family = GatedFamily(build_family("mobilenet_v3_small"))
    assert worst(place(family.traced, kind, family.cost), [WAYS["apart"]], (3,)) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_skipping_is_masking_over_the_families(gated_family: GatedFamily, kind: str) -> None:
    if len(gated_family.blocks) < 2:
        pytest.skip("no residual blocks")
    try:
        model = place(gated_family.traced, kind, gated_family.cost)
    except ModelError as error:
        pytest.skip(str(error))
    assert worst(model, list(WAYS.values()), (1, 3)) <= TOLERANCE


def test_the_network_that_it_was_made_of_stays_as_it_is() -> None:
    model = place(cifar(), "saliences")
    images = images_for(model, 3)
    gates = draw(model, 3, seed=0)
    with torch.inference_mode():
        before = model.decide(images, forced(model, gates)).logits
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        fast = SkippingModel(model, CPU)
        set_cost(fast, WAYS["narrow"])
        for _ in range(2):
            fast.decide(images, forced(model, gates))
        after = model.decide(images, forced(model, gates)).logits
    assert torch.equal(after, before)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


def test_it_owns_its_tensors() -> None:
    model = place(cifar(), "masks")
    fast = SkippingModel(model, CPU)
    images = images_for(model, 2)
    with torch.no_grad():
        before = fast(images)
        for parameter in model.parameters():
            parameter.fill_(0.5)
        assert torch.equal(fast(images), before)


def test_what_a_closed_block_wrote_over_is_written_all_the_same() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv(functional.relu(x, inplace=True))  # the sum reads what relu left of x

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), *(Block() for _ in range(4)), nn.Flatten(), nn.Linear(8 * 64, 4)
    )
    model = gated(trace(network.eval(), (3, 8, 8)), granularity="layer", kind="dependent")
    assert worst(model, [NEVER_MOVE, BlockCost(fixed=0.0, row=1.0, move=0.0)]) < TOLERANCE
