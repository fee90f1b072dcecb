"""Resolution adaptive networks: easy images are classified at a low resolution.

Yang et al., "Resolution Adaptive Networks for Efficient Inference", 2020, section 3. One sub-network
for each entry of `scales`, from the lowest resolution to the highest, one after the other; each has
more blocks than the one before. Its first blocks are fused with the blocks of the sub-network before,
and it goes down to the lowest resolution at the end of the last of them; each of the blocks after
them ends in a classifier.

Parameters carry the names of the authors' public checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptify.errors import UsageError
from adaptify.models.multi_scale import (
    Bottleneck,
    Classifier,
    MultiScaleConfig,
    Unit,
    initialise,
    stem,
)


@dataclass(frozen=True, kw_only=True)
class RANetConfig(MultiScaleConfig):
    """What decides the shape of a RANet, besides what `MultiScaleConfig` holds.

    The lists have an entry for each sub-network, in the order in which they run; `reduction` acts between
    the stages of a sub-network.

    Attributes:
        scales: For each sub-network: its resolution; 1 is the lowest, each step doubles it.
        blocks: Blocks of the first sub-network.
        block_step: Blocks that every sub-network has more than the one before; each adds a classifier.
        step: Layers of a block.
        growing: Whether the n-th block of a sub-network has n times `step` layers.
        compression: Share of new channels that comes from the sub-network before.

    Raises:
        UsageError: The values do not describe a network.
    """

    scales: Sequence[int] = (1, 2, 3, 3)
    factors: Sequence[int] = (4, 2, 1, 1)
    bottlenecks: Sequence[int] = (4, 2, 1, 1)
    blocks: int = 2
    block_step: int = 2
    step: int = 4
    growing: bool = False
    compression: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_lists("scales", "factors", "bottlenecks")
        self.check_positive("blocks", "block_step", "step")
        self.check_fraction("compression")
        rises = [after - before for before, after in zip((1, *self.scales), self.scales, strict=False)]
        if self.scales[0] != 1 or not set(rises) <= {0, 1}:
            raise UsageError(
                f"scales are {tuple(self.scales)}",
                "Start with 1 and go up by 1 or stay, as in 1, 2, 3, 3.",
            )
        added = [self.growth * factor for factor in self.factors[1:]]
        if any(not 1 <= math.floor(self.compression * count) < count for count in added):
            raise UsageError(
                f"compression {self.compression} of {min(added)} new channels leaves one side without any",
                "Use a compression between 0 and 1, or a larger growth.",
            )

    def ends(self, flow: int) -> int:
        """Blocks of sub-network 0, 1, ...; none before the first."""
        return 0 if flow < 0 else self.blocks + flow * self.block_step

    def layers(self, block: int) -> int:
        """Layers of block 0, 1, ... of a sub-network."""
        return self.step * (block + 1) if self.growing else self.step

    def halves(self, flow: int, block: int) -> bool:
        """Whether block 0, 1, ... of a sub-network halves its resolution.

        That is where the sub-networks before it end, the last of them first, until the lowest is reached.
        """
        ends = [self.ends(before) for before in range(flow)]
        return block + 1 in ends[max(0, flow - self.scales[flow] + 1) :]

    def reduces(self, flow: int, block: int) -> bool:
        """Whether block 0, 1, ... of a sub-network reduces its channels: between its stages, one a scale."""
        stages, blocks = self.scales[flow], self.ends(flow)
        return block + 1 in (stage * blocks // stages for stage in range(1, stages))


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)


class Stems(nn.Module):
    """Feature maps of the image for every sub-network, each made from that of the next higher resolution."""

    def __init__(self, config: RANetConfig) -> None:
        super().__init__()
        widths = [config.channels * factor for factor in config.factors]
        self.layers = nn.ModuleList([stem(config.stem, config.in_channels, widths[-1])])
        for flow in reversed(range(len(widths) - 1)):
            stride = 1 + config.scales[flow + 1] - config.scales[flow]
            self.layers.append(Unit(widths[flow + 1], widths[flow], stride=stride))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (N, in_channels, H, W) to one feature map for each sub-network, the lowest first."""
        maps = [images]
        for layer in self.layers:
            maps.append(layer(maps[-1]))
        return maps[:0:-1]


class Grow(nn.Module):
    """A layer that adds channels made from its own input."""

    def __init__(self, width: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        self.conv_normal = Bottleneck(width, growth, width=bottleneck)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width, H, W) to (N, width + growth, H, W)."""
        return torch.cat([x, self.conv_normal(x)], 1)


class Fuse(nn.Module):
    """A layer that adds channels made from its own input and from a map of the sub-network before.

    Args:
        width: Channels of the input.
        lower: Channels of the map of the sub-network before.
        growth: New channels, `compressed` of them from the sub-network before.
        compressed: See `growth`.
        bottlenecks: Widths of the bottlenecks, before and here.
        stride: 2 where the layer halves the resolution.
    """

    def __init__(
        self,
        width: int,
        lower: int,
        *,
        growth: int,
        compressed: int,
        bottlenecks: Sequence[int],
        stride: int,
    ) -> None:
        super().__init__()
        before, here = bottlenecks
        self.conv_up = Bottleneck(lower, compressed, width=before)
        self.conv_normal = Bottleneck(width, growth - compressed, width=here, stride=stride)
        self.halves = stride > 1

    def forward(self, x: Tensor, lower: Tensor) -> Tensor:
        """Map (N, width, H, W) and (N, lower, h, w) to (N, width + growth, H / stride, W / stride)."""
        new = self.conv_normal(x)
        same = _resize(x, new) if self.halves else x
        return torch.cat([same, _resize(self.conv_up(lower), new), new], 1)


class Block(nn.Module):
    """A row of layers, with a 1x1 unit at its end where the channels are reduced.

    Args:
        config: The shape of the network.
        flow: Which sub-network it belongs to.
        index: Which of its blocks it is.
        width: Channels of its input.
        lower: Channels of the maps of the same block of the sub-network before; `None` where it has none.

    Attributes:
        widths: Channels of the maps between its layers: its input, and what each layer yields.
        out: Channels of what it yields.
    """

    def __init__(
        self, config: RANetConfig, flow: int, index: int, width: int, lower: Sequence[int] | None
    ) -> None:
        super().__init__()
        growth, bottleneck = config.growth * config.factors[flow], config.bottlenecks[flow]
        count = config.layers(index)
        self.widths = [width + growth * layer for layer in range(count + 1)]
        self.out = self.widths[-1]
        self.layers = nn.ModuleList()
        if lower is None:
            for inputs in self.widths[:-1]:
                self.layers.append(Grow(inputs, growth, bottleneck))
        else:
            for layer, inputs in enumerate(self.widths[:-1]):
                halves = layer == count - 1 and config.halves(flow, index)
                fuse = Fuse(
                    inputs,
                    lower[layer],
                    growth=growth,
                    compressed=math.floor(config.compression * growth),
                    bottlenecks=config.bottlenecks[flow - 1 : flow + 1],
                    stride=2 if halves else 1,
                )
                self.layers.append(fuse)
            compressed = math.floor(config.compression * self.out)
            self.conv_last = Unit(lower[count], compressed, 1)
            self.out += compressed
        self.fused = lower is not None
        self.trans: nn.Module = nn.Identity()
        if config.reduces(flow, index):
            reduced = max(1, math.floor(config.reduction * self.out))
            self.trans = Unit(self.out, reduced, 1)
            self.out = reduced

    def forward(self, x: Tensor, lower: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Map (N, width, H, W) to (N, out, H', W').

        Args:
            x: Feature map of the block before.
            lower: Maps of the same block of the sub-network before; read only where they are fused.

        Returns:
            The feature map for the next block, and the maps for the sub-network after this one.
        """
        maps = [x]
        for index, layer in enumerate(self.layers):
            maps.append(layer(maps[-1], lower[index]) if self.fused else layer(maps[-1]))
        out = maps[-1]
        if self.fused:
            out = torch.cat([out, _resize(self.conv_last(lower[len(self.layers)]), out)], 1)
        return self.trans(out), maps


class RANet(nn.Module):
    """A resolution adaptive network: `scale_flows[s][b]` are the blocks, `classifier[n]` is that of exit n.

    Args:
        config: Its shape.
    """

    def __init__(self, config: RANetConfig) -> None:
        super().__init__()
        # The names are those of the public checkpoints.
        self.FirstLayer = Stems(config)
        self.scale_flows = nn.ModuleList()
        self.classifier = nn.ModuleList()
        self.silent = [config.ends(flow - 1) for flow in range(len(config.scales))]
        lower: list[list[int]] = []
        for flow, silent in enumerate(self.silent):
            blocks = nn.ModuleList()
            width, widths = config.channels * config.factors[flow], []
            for index in range(config.ends(flow)):
                block = Block(config, flow, index, width, lower[index] if index < silent else None)
                blocks.append(block)
                widths.append(block.widths)
                width = block.out
                if index >= silent:
                    self.classifier.append(Classifier(width, config.head_channels, config.num_classes))
            self.scale_flows.append(blocks)
            lower = widths
        initialise(self)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images (N, in_channels, H, W) to the logits (N, num_classes) of every exit, shallow to deep."""
        classifiers = iter(self.classifier)
        logits: list[Tensor] = []
        lower: list[list[Tensor]] = []
        flows = cast("Iterable[nn.ModuleList]", self.scale_flows)
        for x, blocks, silent in zip(self.FirstLayer(images), flows, self.silent, strict=True):
            maps: list[list[Tensor]] = []
            for index, block in enumerate(blocks):
                x, between = block(x, lower[index] if index < silent else ())
                maps.append(between)
                if index >= silent:
                    logits.append(next(classifiers)(x))
            lower = maps
        return tuple(logits)


def _named(config: RANetConfig, changes: dict[str, Any]) -> RANet:
    return RANet(replace(config, **changes))


_CIFAR_BATCH = RANetConfig(step=2, growing=True)
_IMAGENET = RANetConfig(
    scales=(1, 2, 3, 4),
    factors=(4, 2, 2, 1),
    bottlenecks=(4, 2, 2, 1),
    step=8,
    channels=64,
    growth=16,
    stem="large",
    head_channels=None,
    num_classes=1000,
)


def ranet_cifar100_anytime(**kwargs: Any) -> RANet:
    """Eight classifiers for CIFAR-100 at three resolutions; arguments as `RANetConfig`."""
    return _named(RANetConfig(), kwargs)


def ranet_cifar100_batch1(**kwargs: Any) -> RANet:
    """Six classifiers for CIFAR-100, blocks of 2, 4, ... layers; arguments as `RANetConfig`."""
    return _named(replace(_CIFAR_BATCH, scales=(1, 2, 3), factors=(4, 2, 1), bottlenecks=(4, 2, 1)), kwargs)


def ranet_cifar100_batch2(**kwargs: Any) -> RANet:
    """Eight classifiers for CIFAR-100, the middle resolution twice; arguments as `RANetConfig`."""
    scales, factors = (1, 2, 2, 3), (4, 2, 2, 1)
    return _named(replace(_CIFAR_BATCH, scales=scales, factors=factors, bottlenecks=factors), kwargs)


def ranet_cifar100_batch3(**kwargs: Any) -> RANet:
    """Eight classifiers for CIFAR-100, the full resolution twice; arguments as `RANetConfig`."""
    return _named(_CIFAR_BATCH, kwargs)


def ranet_imagenet_anytime(**kwargs: Any) -> RANet:
    """Eight classifiers for ImageNet at four resolutions; arguments as `RANetConfig`."""
    return _named(_IMAGENET, kwargs)


def ranet_imagenet_batch1(**kwargs: Any) -> RANet:
    """As `ranet_imagenet_anytime`, with half as many channels after the stem; arguments as `RANetConfig`."""
    return _named(replace(_IMAGENET, channels=32), kwargs)
