"""Gates that come in with the images, and adapters that stay where channels are removed."""

from __future__ import annotations

import pytest
import torch
from channel_nets import run
from families import GatedFamily, scramble
from gated_nets import by_channel, difference, gated
from torch import nn

from adaptify.graph.adapters import ADAPTERS
from adaptify.graph.channels import find_channels
from adaptify.graph.cost import CostModel
from adaptify.graph.decouple import decouple
from adaptify.graph.gating import insert_masks
from adaptify.graph.masking import mask_channels
from adaptify.graph.program import compile_graph
from adaptify.graph.sites import find_blocks
from adaptify.graph.surgery import remove_blocks, remove_channels
from adaptify.graph.trace import Traced, trace
from adaptify.models.cifar_resnet import CifarResNet


def resnet() -> Traced:
    torch.manual_seed(0)
    return trace(scramble(CifarResNet(blocks=1, shortcut="B")), (3, 16, 16))


def masked(traced: Traced, sites, images: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    own = traced.with_own_tensors()
    own.root.add_module("tables", nn.Module())
    channels = find_channels(traced) if any(site.position != "layer" for site in sites) else None
    graph = insert_masks(own, channels, sites, "tables")
    with torch.no_grad():
        return compile_graph(graph)(own.root, images, gates)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_each_row_is_the_network_without_what_its_gates_close(name: str, build_family) -> None:
    family = GatedFamily(build_family(name))
    model = gated(family.traced, family.cost)
    traced = model.backbone()
    generator = torch.Generator().manual_seed(0)
    gates = (torch.rand(len(family.images), model.gate_cost.gates, generator=generator) < 2 / 3).float()
    found = masked(traced, model.sites, family.images, gates)
    for row, own in enumerate(gates):
        wanted = mask_channels(find_channels(traced), by_channel(model, own))
        assert difference(found[row : row + 1], run(wanted, family.images[row : row + 1])) <= 1e-5


def test_branches_of_each_row_are_closed() -> None:
    traced = resnet()
    model = gated(traced, granularity="layer")
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    gates = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    found = masked(traced, model.sites, images, gates)
    blocks = find_blocks(traced, CostModel(traced))
    for row, closed in enumerate((blocks[1], blocks[0])):
        wanted = run(remove_blocks(traced, [closed]), images[row : row + 1])
        assert difference(found[row : row + 1], wanted) <= 1e-5


def test_adapters_stay_where_they_are_asked_to() -> None:
    traced = decouple(resnet())
    channels = find_channels(traced)
    # Every other channel inside of the first block: its adapters pass everything on.
    group = next(group for group in channels.removable if "layer1.0.conv1" in group.name)
    keep = {group.name: torch.arange(group.size) % 2 == 0}
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    wanted = run(mask_channels(channels, keep), images)
    count = {}
    for keep_adapters in (False, True):
        small = remove_channels(channels, keep, keep_adapters=keep_adapters)
        assert difference(run(small, images), wanted) <= 1e-5
        assert small.root.get_submodule("layer1.0.conv1").out_channels == group.size // 2
        count[keep_adapters] = sum(isinstance(module, ADAPTERS) for module in small.root.modules())
    assert count[False] == 0
    assert count[True] == sum(isinstance(module, ADAPTERS) for module in traced.root.modules()) > 0
