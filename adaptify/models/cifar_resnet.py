"""Residual networks for small images.

He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2: a 3x3 stem and stages
of basic blocks that halve the resolution and double the width; depth = 6n + 2 for three stages of n
blocks. Parameters carry the names of the public CIFAR checkpoints of this family (`conv1`, `bn1`,
`layer1.0.conv1`, ..., `linear`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from adaptify.errors import UsageError


class PadShortcut(nn.Module):
    """Option A of the paper: every second pixel, new channels filled with zeros, no parameters.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out; the new ones are split evenly before and after the old.
        stride: Step between the pixels that are kept.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        new = out_channels - in_channels
        if new < 0:
            raise UsageError(
                f"a shortcut of option A cannot shrink {in_channels} channels to {out_channels}",
                'Use widths that do not decrease, or {"shortcut": "B"}.',
            )
        self.padding = (0, 0, 0, 0, new // 2, new - new // 2)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), rounded up."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


def projection_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Option B of the paper: a strided 1x1 convolution and a batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


SHORTCUTS = {"A": PadShortcut, "B": projection_shortcut}


class BasicBlock(nn.Module):
    """relu(f(x) + shortcut(x)), f two 3x3 convolutions, each with batch normalisation."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = SHORTCUTS[shortcut](in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), rounded up."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A residual network of basic blocks on a 3x3 stem.

    Stages are the modules `layer1`, `layer2`, ...; every stage but the first halves the resolution.

    Args:
        blocks: Basic blocks in each stage; one number for all.
        widths: Channels of each stage.
        shortcut: `"A"` (zero padding, no parameters) or `"B"` (1x1 convolution) where a stage begins.
        in_channels: Channels of the image.
        num_classes: Outputs.

    Raises:
        UsageError: The arguments do not describe a network.
    """

    def __init__(
        self,
        *,
        blocks: int | Sequence[int],
        widths: Sequence[int] = (16, 32, 64),
        shortcut: str = "A",
        in_channels: int = 3,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        counts = [blocks] * len(widths) if isinstance(blocks, int) else list(blocks)
        if not widths or len(counts) != len(widths) or min(*counts, *widths, in_channels, num_classes) < 1:
            raise UsageError(
                f"blocks {blocks} and widths {tuple(widths)} do not describe a network",
                "Give one positive width for each stage.",
            )
        if shortcut not in SHORTCUTS:
            raise UsageError(f"unknown shortcut option '{shortcut}'", "Use A or B.")
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = [f"layer{index}" for index in range(1, len(widths) + 1)]
        before = widths[0]
        for name, count, width in zip(self.stages, counts, widths, strict=True):
            first_stride = 1 if name == "layer1" else 2
            stage = nn.Sequential()
            for index in range(count):
                stride = first_stride if index == 0 else 1
                stage.append(BasicBlock(before, width, stride=stride, shortcut=shortcut))
                before = width
            self.add_module(name, stage)
        self.linear = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def cifar_resnet20(**kwargs: Any) -> CifarResNet:
    """ResNet-20: three stages of 3 blocks; arguments as `CifarResNet`."""
    return CifarResNet(blocks=3, **kwargs)


def cifar_resnet32(**kwargs: Any) -> CifarResNet:
    """ResNet-32: three stages of 5 blocks; arguments as `CifarResNet`."""
    return CifarResNet(blocks=5, **kwargs)


def cifar_resnet44(**kwargs: Any) -> CifarResNet:
    """ResNet-44: three stages of 7 blocks; arguments as `CifarResNet`."""
    return CifarResNet(blocks=7, **kwargs)


def cifar_resnet56(**kwargs: Any) -> CifarResNet:
    """ResNet-56: three stages of 9 blocks; arguments as `CifarResNet`."""
    return CifarResNet(blocks=9, **kwargs)


def cifar_resnet110(**kwargs: Any) -> CifarResNet:
    """ResNet-110: three stages of 18 blocks; arguments as `CifarResNet`."""
    return CifarResNet(blocks=18, **kwargs)


def digits_resnet(**kwargs: Any) -> CifarResNet:
    """A small network for 8x8 grey digits: three stages of 1 block; arguments as `CifarResNet`."""
    return CifarResNet(blocks=1, **{"in_channels": 1, **kwargs})
