"""What a source of architectures offers, and what all sources share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from torch import nn

from adaptify.bounds import MOST_CHANNELS
from adaptify.errors import AdaptifyError, UsageError
from adaptify.input_spec import InputSpec

Kwargs = Mapping[str, Any]


class Source(Protocol):
    """A family of builders under one prefix, as `torchvision` in `torchvision:resnet50`.

    Attributes:
        prefix: What stands before the colon.
        searchable: Whether a search may build all of its networks.
    """

    prefix: str
    searchable: bool

    def names(self) -> tuple[str, ...]:
        """All names, without the prefix."""

    def knows(self, name: str) -> bool:
        """Whether `name` can be built; true for spellings that `names` does not list."""

    def titles(self) -> Iterable[tuple[str, str]]:
        """What files are called that hold a network, and the name of the network; more than one is fine."""

    def defaults(self, name: str) -> Kwargs:
        """Arguments to state explicitly, so that a network saved today is built the same tomorrow."""

    def variants(self, name: str) -> tuple[Kwargs, ...]:
        """Arguments that change shapes or names, besides classes and channels, to try in a search."""

    def training_only(self, name: str) -> Kwargs:
        """Arguments that add the heads which only training uses; empty where there are none."""

    def input(self, name: str, kwargs: Kwargs, file: str) -> InputSpec:
        """The images `name` expects; `file` is the name of the checkpoint, where there is one."""

    def build(self, name: str, kwargs: Kwargs) -> nn.Module:
        """Build the network with random weights. Nothing is downloaded."""


def call(builder: Callable[..., Any], label: str, kwargs: Kwargs) -> nn.Module:
    """Call `builder(**kwargs)` and explain what goes wrong.

    Raises:
        UsageError: The builder fails or does not return a module.
    """
    try:
        with warnings.catch_warnings():
            # torchvision announces a change of its random initialisation; weights are loaded anyway.
            warnings.filterwarnings(
                "ignore", message="The default weight initialization", category=FutureWarning
            )
            module = builder(**kwargs)
    except AdaptifyError:
        raise
    except Exception as error:
        arguments = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        raise UsageError(
            f"{label}({arguments}) cannot be built: {type(error).__name__}: {error}",
            "Check the arguments given with --arch-kwargs.",
        ) from error
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"{label} returned {type(module).__name__}, not a torch.nn.Module",
            "Give a function or class that returns the network.",
        )
    return module


def with_channels(spec: InputSpec, channels: int) -> InputSpec:
    """Return `spec` for images of `channels` channels, with the average of its statistics if that is new.

    Raises:
        ValueError: `channels` is not a positive integer, or more than images have.
    """
    if not isinstance(channels, int) or not 1 <= channels <= MOST_CHANNELS:
        raise ValueError(f"{channels!r} is not a number of channels")
    if channels == spec.channels:
        return spec
    mean, std = (sum(values) / len(values) for values in (spec.mean, spec.std))
    return replace(spec, channels=channels, mean=(mean,) * channels, std=(std,) * channels)


def refuse(kwargs: Kwargs, reserved: frozenset[str], label: str) -> None:
    """Refuse arguments that would fetch or load weights.

    Raises:
        UsageError: One of `reserved` is in `kwargs`.
    """
    for key in kwargs:
        if key in reserved:
            raise UsageError(
                f"{label} is built without weights of its own: '{key}' cannot be given",
                "Leave it out: the weights come from the checkpoint.",
            )
