"""Multi-scale dense networks: classifiers at several depths, on features that are coarse from the start.

Huang et al., "Multi-Scale Dense Networks for Resource Efficient Image Classification", 2018, section 4.
Feature maps form a grid of layers (depth) and scales (resolution, halved from one to the next). A layer
adds `growth` channels to each scale: half of them from the same scale, half from the finer one. All
classifiers sit on the coarsest scale. A third of the way (for three scales) the finest scale is given
up, and the channels of the others are reduced; and so on until one scale is left.

Parameters carry the names of the authors' public checkpoints.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
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
class MSDNetConfig(MultiScaleConfig):
    """What decides the shape of an MSDNet, besides what `MultiScaleConfig` holds.

    The lists have an entry for each scale from fine to coarse; `reduction` acts where a scale is given up.

    Attributes:
        blocks: Classifiers; each ends a block of layers.
        base: Layers of the first block.
        step: Layers of every further block.

    Raises:
        UsageError: The values do not describe a network.
    """

    blocks: int = 10
    base: int = 4
    step: int = 2
    factors: Sequence[int] = (1, 2, 4)
    bottlenecks: Sequence[int] = (1, 2, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("blocks", "base", "step")
        if any(self.growth * factor % 2 for factor in self.factors[1:]):
            raise UsageError(
                f"growth {self.growth} cannot be halved at factors {self.factors}",
                "Use an even growth: half of it comes from the same scale, half from the finer one.",
            )
        if self.layers < self.scales:
            raise UsageError(
                f"{self.layers} layers cannot reduce {self.scales} scales to one",
                "Use more layers (blocks, base, step) or fewer factors.",
            )

    @property
    def layers(self) -> int:
        """Layers of all blocks together."""
        return self.base + (self.blocks - 1) * self.step

    @property
    def scales(self) -> int:
        """Number of resolutions."""
        return len(self.factors)

    def finest(self, layer: int) -> int:
        """Finest scale that layer 1, 2, ... yields (0 is the finest of all); layer 0 is the stem."""
        interval = math.ceil(self.layers / self.scales)
        # A scale from which the last classifier cannot be reached any more has nothing to give.
        too_late = self.scales - 1 - (self.layers - layer)
        return max(0, (layer - 1) // interval, too_late)


class Row(Protocol):
    """One layer of the grid: all scales at one depth."""

    def at(self, scale: int, before: Maps) -> Tensor:
        """Feature map of one scale, from those of the row before."""


class Maps(Protocol):
    """Feature maps of a row by scale, 0 the finest."""

    def __getitem__(self, scale: int, /) -> Tensor:
        """(N, C, H, W) of one scale."""


class Lazy:
    """The feature maps of a row, each computed when it is asked for the first time.

    So a classifier is computed from what it needs and before anything else is ("lazy evaluation" in
    section 4 of the paper): at its own depth only the coarsest scale, one layer before two, and so on.
    """

    def __init__(self, row: Row, before: Maps) -> None:
        self.row = row
        self.before = before
        self.known: dict[int, Tensor] = {}

    def __getitem__(self, scale: int, /) -> Tensor:
        if scale not in self.known:
            self.known[scale] = self.row.at(scale, self.before)
        return self.known[scale]


class Stem(nn.Module):
    """The first row: each scale from the finer one, the finest from the image."""

    def __init__(self, config: MSDNetConfig) -> None:
        super().__init__()
        widths = [config.channels * factor for factor in config.factors]
        self.layers = nn.ModuleList([stem(config.stem, config.in_channels, widths[0])])
        for finer, coarser in itertools.pairwise(widths):
            self.layers.append(Unit(finer, coarser, stride=2))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (N, in_channels, H, W) to one feature map for each scale."""
        maps = [images]
        for layer in self.layers:
            maps.append(layer(maps[-1]))
        return maps[1:]


class Widen(nn.Module):
    """Adds channels to the finest scale of a row, from that scale alone."""

    def __init__(self, config: MSDNetConfig, scale: int, width: int) -> None:
        super().__init__()
        factor, bottleneck = config.factors[scale], config.bottlenecks[scale]
        self.conv_normal = Bottleneck(width * factor, config.growth * factor, width=bottleneck)

    def forward(self, same: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + growth, H, W)."""
        return torch.cat([same, self.conv_normal(same)], 1)


class WidenFromTwo(nn.Module):
    """Adds channels to a scale: half from the next finer scale, half from the scale itself."""

    def __init__(self, config: MSDNetConfig, scale: int, width: int) -> None:
        super().__init__()
        (finer, factor), bottlenecks = config.factors[scale - 1 : scale + 1], config.bottlenecks
        half = config.growth * factor // 2
        self.conv_down = Bottleneck(width * finer, half, width=bottlenecks[scale - 1], stride=2)
        self.conv_normal = Bottleneck(width * factor, half, width=bottlenecks[scale])

    def forward(self, finer: Tensor, same: Tensor) -> Tensor:
        """Map (N, C', 2H, 2W) and (N, C, H, W) to (N, C + growth, H, W)."""
        return torch.cat([same, self.conv_down(finer), self.conv_normal(same)], 1)


class DenseRow(nn.Module):
    """A layer: adds channels to every scale from `finest` on; `width` channels come in, at factor 1."""

    def __init__(self, config: MSDNetConfig, layer: int, width: int) -> None:
        super().__init__()
        self.finest = config.finest(layer)
        # Where the finest scale is given up, it still feeds the one that is the finest from here on.
        self.fed = config.finest(layer - 1) < self.finest
        self.layers = nn.ModuleList(
            [
                (WidenFromTwo if self.fed or scale > self.finest else Widen)(config, scale, width)
                for scale in range(self.finest, config.scales)
            ]
        )

    def at(self, scale: int, before: Maps) -> Tensor:
        """Feature map of one scale, from those of the row before."""
        layer = self.layers[scale - self.finest]
        alone = scale == self.finest and not self.fed
        out: Tensor = layer(before[scale]) if alone else layer(before[scale - 1], before[scale])
        return out


class Transition(nn.Module):
    """Reduces the channels of every scale from `finest` on by 1x1 units."""

    def __init__(self, config: MSDNetConfig, finest: int, width: int, reduced: int) -> None:
        super().__init__()
        self.finest = finest
        self.m = nn.ModuleList(
            [Unit(width * factor, reduced * factor, 1) for factor in config.factors[finest:]]
        )

    def at(self, scale: int, before: Maps) -> Tensor:
        """Feature map of one scale, from that of the row before."""
        out: Tensor = self.m[scale - self.finest](before[scale])
        return out


class MSDNet(nn.Module):
    """A multi-scale dense network. `blocks[n]` are the rows and `classifier[n]` the classifier of exit n.

    Args:
        config: Its shape.
    """

    def __init__(self, config: MSDNetConfig) -> None:
        super().__init__()
        self.coarsest = config.scales - 1
        self.blocks = nn.ModuleList()
        self.classifier = nn.ModuleList()
        width = config.channels
        for block in range(config.blocks):
            rows = nn.ModuleList() if block else nn.ModuleList([Stem(config)])
            last = config.base + block * config.step
            for layer in range(last - config.step + 1 if block else 1, last + 1):
                rows.append(DenseRow(config, layer, width))
                width += config.growth
                finest = config.finest(layer)
                if finest > config.finest(layer - 1):
                    reduced = max(1, math.floor(config.reduction * width))
                    rows.append(Transition(config, finest, width, reduced))
                    width = reduced
            self.blocks.append(rows)
            channels = width * config.factors[-1]
            self.classifier.append(Classifier(channels, config.head_channels, config.num_classes))
        initialise(self)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images (N, in_channels, H, W) to the logits (N, num_classes) of every exit, shallow to deep."""
        maps: Maps = [images]
        logits = []
        for block, classifier in zip(self.blocks, self.classifier, strict=True):
            for row in block.children():
                maps = row(images) if isinstance(row, Stem) else Lazy(cast("Row", row), maps)
            logits.append(classifier(maps[self.coarsest]))
        return tuple(logits)


def _named(config: MSDNetConfig, changes: dict[str, Any]) -> MSDNet:
    return MSDNet(replace(config, **changes))


def msdnet_cifar100_anytime(**kwargs: Any) -> MSDNet:
    """Ten classifiers for CIFAR-100 at depths 4, 6, ..., 22; arguments as `MSDNetConfig`."""
    return _named(MSDNetConfig(), kwargs)


def msdnet_cifar100_batch4(**kwargs: Any) -> MSDNet:
    """Six classifiers for CIFAR-100 at depths 6, 8, ..., 16; arguments as `MSDNetConfig`."""
    return _named(MSDNetConfig(blocks=6, base=6), kwargs)


def msdnet_cifar100_batch8(**kwargs: Any) -> MSDNet:
    """Six classifiers for CIFAR-100 at depths 10, 12, ..., 20; arguments as `MSDNetConfig`."""
    return _named(MSDNetConfig(blocks=6, base=10), kwargs)


def msdnet_cifar100_batch12(**kwargs: Any) -> MSDNet:
    """Six classifiers for CIFAR-100 at depths 14, 16, ..., 24; arguments as `MSDNetConfig`."""
    return _named(MSDNetConfig(blocks=6, base=14), kwargs)


_IMAGENET = MSDNetConfig(
    blocks=5,
    base=7,
    step=7,
    channels=32,
    growth=16,
    factors=(1, 2, 4, 4),
    bottlenecks=(1, 2, 4, 4),
    stem="large",
    head_channels=None,
    num_classes=1000,
)


def msdnet_imagenet_step4(**kwargs: Any) -> MSDNet:
    """Five classifiers for ImageNet at depths 4, 8, ..., 20; arguments as `MSDNetConfig`."""
    return _named(replace(_IMAGENET, base=4, step=4), kwargs)


def msdnet_imagenet_step7(**kwargs: Any) -> MSDNet:
    """Five classifiers for ImageNet at depths 7, 14, ..., 35; arguments as `MSDNetConfig`."""
    return _named(_IMAGENET, kwargs)


def digits_msdnet(**kwargs: Any) -> MSDNet:
    """A small network for 8x8 grey digits: two scales, four classifiers; arguments as `MSDNetConfig`."""
    small = MSDNetConfig(
        blocks=4,
        base=2,
        step=1,
        channels=8,
        growth=4,
        factors=(1, 2),
        bottlenecks=(1, 2),
        head_channels=32,
        in_channels=1,
        num_classes=10,
    )
    return _named(small, kwargs)
