"""What MSDNet and RANet share: the values that both are asked for, units of convolution, stems, classifiers.

Parameters carry the names of the authors' public checkpoints (`net.0`, `m.0.net.0`, `linear`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from adaptify.errors import UsageError

STEMS = ("small", "large")


@dataclass(frozen=True, kw_only=True)
class MultiScaleConfig:
    """What both kinds of network are asked.

    Attributes:
        channels: Channels after the stem, at factor 1.
        growth: Channels that a layer adds, at factor 1.
        factors: For each scale: what `channels` and `growth` are multiplied with.
        bottlenecks: For each scale: width of its bottlenecks, in multiples of the channels they yield.
        reduction: Share of the channels that is kept where they are reduced.
        stem: `"small"` (a 3x3 convolution) or `"large"` (7x7 and pooling, for images as of ImageNet).
        head_channels: Channels inside the classifiers; `None` for as many as the feature map has.
        in_channels: Channels of the image.
        num_classes: Outputs of every classifier.

    Raises:
        UsageError: The values do not describe a network.
    """

    channels: int = 16
    growth: int = 6
    factors: Sequence[int]
    bottlenecks: Sequence[int]
    reduction: float = 0.5
    stem: str = "small"
    head_channels: int | None = 128
    in_channels: int = 3
    num_classes: int = 100

    def __post_init__(self) -> None:
        self.check_positive("channels", "growth", "in_channels", "num_classes")
        if self.head_channels is not None:
            self.check_positive("head_channels")
        self.check_fraction("reduction")
        self.check_lists("factors", "bottlenecks")
        if self.stem not in STEMS:
            raise UsageError(f"unknown stem {self.stem!r}", f"Use {' or '.join(STEMS)}.")

    def check_positive(self, *names: str) -> None:
        """Check that these are positive integers.

        Raises:
            UsageError: One is not.
        """
        for name in names:
            if not _is_positive(getattr(self, name)):
                raise UsageError(f"{name} is {getattr(self, name)!r}", "Give a positive integer.")

    def check_fraction(self, *names: str) -> None:
        """Check that these are in (0, 1].

        Raises:
            UsageError: One is not.
        """
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value <= 1:
                raise UsageError(f"{name} is {value!r}", "Give a number above 0 and at most 1.")

    def check_lists(self, *names: str) -> None:
        """Check that these are lists of positive integers, all of one length; JSON's lists become tuples.

        Raises:
            UsageError: One is not.
        """
        for name in names:
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not values or not all(map(_is_positive, values)):
                raise UsageError(f"{name} is {values!r}", "Give a positive integer for each scale.")
            object.__setattr__(self, name, tuple(values))
        lengths = {name: len(getattr(self, name)) for name in names}
        if len(set(lengths.values())) > 1:
            described = ", ".join(f"{name} has {count}" for name, count in lengths.items())
            raise UsageError(f"{described} entries", "Give one entry for each scale.")


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def conv_unit(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> tuple[nn.Module, ...]:
    """A padded convolution without bias, its batch normalisation and a ReLU."""
    # Not in place: what the unit is given may be part of a feature map that others read.
    return (
        nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class Unit(nn.Module):
    """One convolution with batch normalisation and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(*conv_unit(in_channels, out_channels, kernel, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), rounded up."""
        out: Tensor = self.net(x)
        return out


class Bottleneck(nn.Module):
    """A 1x1 unit to at most `width` channels for each channel that comes out, and a 3x3 unit."""

    def __init__(self, in_channels: int, out_channels: int, *, width: int, stride: int = 1) -> None:
        super().__init__()
        inner = min(in_channels, width * out_channels)
        self.net = nn.Sequential(
            *conv_unit(in_channels, inner, 1), *conv_unit(inner, out_channels, 3, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), rounded up."""
        out: Tensor = self.net(x)
        return out


class Classifier(nn.Module):
    """Two 3x3 units of stride 2, the mean over what is left of the image, a linear layer.

    Args:
        in_channels: Channels of the feature map.
        inner: Channels of the two units; `None` for `in_channels`.
        num_classes: Outputs.
    """

    def __init__(self, in_channels: int, inner: int | None, num_classes: int) -> None:
        super().__init__()
        width = inner or in_channels
        # The papers pool 2x2, which is the whole map at their image sizes; the mean suits any size.
        self.m = nn.Sequential(
            Unit(in_channels, width, stride=2), Unit(width, width, stride=2), nn.AdaptiveAvgPool2d(1)
        )
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.linear(self.m(x).flatten(1))
        return logits


def stem(kind: str, in_channels: int, out_channels: int) -> nn.Module:
    """What an image passes first: a 3x3 unit, or a 7x7 unit and a pooling that divide the resolution by 4."""
    if kind == "small":
        return Unit(in_channels, out_channels)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 7, stride=2, padding=3),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


def initialise(network: nn.Module) -> None:
    """Draw weights as the authors do: normal, of variance 2 / (connections that go out) (He et al. 2015)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
