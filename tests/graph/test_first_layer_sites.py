"""Where C-Nets go: the channels that the first layer of a residual branch writes."""

from __future__ import annotations

import pytest
import torch
from channel_nets import Net, conv
from families import Family
from torch import nn

from adaptify.graph.channels import find_channels
from adaptify.graph.cost import CostModel
from adaptify.graph.gate_sites import GateSite, find_first_layer_sites
from adaptify.graph.sites import find_blocks, first_layer
from adaptify.graph.trace import Traced, trace

# Blocks, and how many of them have channels to close; the others are depthwise first, or attention.
FOUND = {
    "resnet18": (8, 8),
    "resnet50": (16, 16),
    "resnext50_32x4d": (16, 16),
    "wide_resnet50_2": (16, 16),
    "mobilenet_v2": (10, 10),
    "mobilenet_v3_small": (6, 6),
    "mnasnet1_0": (10, 10),
    "efficientnet_b0": (9, 9),
    "efficientnet_v2_s": (35, 33),
    "regnet_y_400mf": (16, 16),
    "regnet_x_400mf": (22, 22),
    "convnext_tiny": (18, 0),
    "swin_t": (24, 12),
    "vit_b_16": (24, 12),
    "maxvit_t": (55, 33),
}


def sites_of(traced: Traced) -> tuple[GateSite, ...]:
    return find_first_layer_sites(find_channels(traced), find_blocks(traced, CostModel(traced)))


def test_the_blocks_of_families_have_their_first_layer(family: Family) -> None:
    blocks = find_blocks(family.traced, family.cost)
    sites = find_first_layer_sites(find_channels(family.traced), blocks)
    assert (len(blocks), len(sites)) == FOUND.get(family.name, (0, 0))
    for site in sites:
        assert site.block in blocks
        assert (site.filters, site.always_open, site.gates) == (1, 0, site.size)
        # Nothing that costs anything runs before it, so that it saves all that its channels cost.
        assert first_layer(family.traced, site.block, family.cost).target == site.name


def residual(**layers: nn.Module) -> Traced:
    """x + f(x) on 4 channels, f being the layers one after the other."""

    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        y = x
        for name in layers:
            y = torch.relu(m.get_submodule(name)(y))
        return m.head((x + y).mean((2, 3)))

    return trace(Net(forward, stem=conv(3, 4), head=nn.Linear(4, 2), **layers).eval(), (3, 8, 8))


def test_only_the_first_of_several_inner_layers_has_gates() -> None:
    (site,) = sites_of(residual(a=conv(4, 6, 1), b=conv(6, 5), c=conv(5, 4, 1)))
    assert (site.name, site.gates) == ("a", 6)


def test_a_gate_of_grouped_channels_closes_a_group() -> None:
    (site,) = sites_of(residual(a=conv(4, 6, 1), b=conv(6, 6, groups=3), c=conv(6, 4, 1)))
    assert (site.name, site.gates) == ("a", 3)


@pytest.mark.parametrize(
    "layers",
    [
        {"only": conv(4, 4)},
        {"deep": conv(4, 4, groups=4), "wide": conv(4, 6, 1), "c": conv(6, 4, 1)},
    ],
    ids=["one layer", "depthwise first"],
)
def test_channels_of_the_stream_stay(layers: dict[str, nn.Module]) -> None:
    assert sites_of(residual(**layers)) == ()
