"""Toy networks and helpers for the tests of the channel analysis."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from families import scramble
from torch import Tensor, nn

from adaptify.graph.channel_cost import ChannelCost
from adaptify.graph.channels import Channels, find_channels
from adaptify.graph.cost import CostModel
from adaptify.graph.masking import mask_channels
from adaptify.graph.program import compile_graph
from adaptify.graph.surgery import remove_channels
from adaptify.graph.trace import Traced, trace


class Net(nn.Module):
    """A network from its layers and a function of (the network, the images)."""

    def __init__(self, function: Callable[[Net, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(inputs: int, outputs: int, kernel: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)  # type: ignore[arg-type]


def analyse(model: nn.Module, shape: tuple[int, int, int] = (3, 8, 8)) -> Channels:
    """Channels of `model` in evaluation mode, with random values in everything that starts as a constant."""
    return find_channels(trace(scramble(model), shape))


def sizes(channels: Channels) -> dict[str, int]:
    """Name -> size of the groups that can be removed."""
    return {group.name: group.size for group in channels.removable}


def random_keep(channels: Channels, rate: float, seed: int = 0) -> dict[str, Tensor]:
    """A mask for every removable group that keeps at least one channel of each."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in channels.removable:
        mask = torch.rand(group.size, generator=generator) < rate
        mask[int(torch.randint(group.size, (1,), generator=generator))] = True
        keep[group.name] = mask
    return keep


def run(traced: Traced, images: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = compile_graph(traced.graph)(traced.root.eval(), images)
    return output


def check_removal(channels: Channels, keep: Mapping[str, Tensor], batch: int = 2) -> Traced:
    """Remove, and hold the result against the masked network and against the predicted cost."""
    small = remove_channels(channels, keep)
    images = torch.randn(batch, *channels.traced.input_shape, generator=torch.Generator().manual_seed(7))
    masked = run(mask_channels(channels, keep), images)
    removed = run(small, images)
    assert torch.isfinite(masked).all()
    scale = float(masked.abs().max())
    assert scale > 1e-3
    assert float((removed - masked).abs().max()) <= 1e-5 * scale
    assert CostModel(small).total == ChannelCost(channels).macs(keep)
    return small


def kept(size: int, *indices: int) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(indices)] = True
    return mask
