"""What MSDNet and RANet are made of: units of convolution, normalisation and ReLU, stems and classifiers.

Parameters carry the names of the authors' public checkpoints (`net.0`, `m.0.net.0`, `linear`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from adaptify.errors import UsageError

STEMS = ("small", "large")


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


def check_positive(**values: int | None) -> None:
    """Check that all values are positive integers (or None, where the configuration allows it).

    Raises:
        UsageError: One is not.
    """
    for name, value in values.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UsageError(f"{name} is {value!r}", "Give a positive integer.")


def check_fraction(**values: float) -> None:
    """Check that all values are in (0, 1].

    Raises:
        UsageError: One is not.
    """
    for name, value in values.items():
        if not isinstance(value, int | float) or not 0 < value <= 1:
            raise UsageError(f"{name} is {value!r}", "Give a number above 0 and at most 1.")


def check_stem(kind: str) -> None:
    """Check the kind of a stem.

    Raises:
        UsageError: It is unknown.
    """
    if kind not in STEMS:
        raise UsageError(f"unknown stem {kind!r}", f"Use {' or '.join(STEMS)}.")


def one_each(**lists: Sequence[int]) -> Mapping[str, tuple[int, ...]]:
    """Lists of positive integers, one for each scale, as tuples.

    Raises:
        UsageError: They are empty, of different lengths, or hold something else.
    """
    for name, values in lists.items():
        if not isinstance(values, list | tuple) or not values:
            raise UsageError(f"{name} is {values!r}", "Give a list with one positive integer for each scale.")
        check_positive(**{f"{name}[{index}]": value for index, value in enumerate(values)})
    if len({len(values) for values in lists.values()}) > 1:
        lengths = ", ".join(f"{name} has {len(values)}" for name, values in lists.items())
        raise UsageError(f"{lengths} entries", "Give one entry for each scale.")
    return {name: tuple(values) for name, values in lists.items()}
