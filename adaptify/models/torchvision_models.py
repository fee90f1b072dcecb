"""The classification networks of torchvision, under the prefix `torchvision:`."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterable
from functools import cache
from pathlib import PurePosixPath
from typing import Any

import torchvision
from torch import nn
from torchvision.models import get_model_builder, get_model_weights, list_models

from adaptify.input_spec import InputSpec
from adaptify.models.source import Kwargs, call, refuse, with_channels

_RESERVED = frozenset({"weights", "weights_backbone", "pretrained", "progress"})


class Torchvision:
    """Source of `torchvision.models`, without detection, segmentation, video and quantised networks.

    `in_channels` is understood for every network, which torchvision itself does not offer.
    """

    prefix = "torchvision"
    searchable = True

    def names(self) -> tuple[str, ...]:
        """All names, without the prefix."""
        return _names()

    def knows(self, name: str) -> bool:
        """Whether `name` can be built."""
        return name in _names()

    def titles(self) -> Iterable[tuple[str, str]]:
        """Files are called as the networks are."""
        return ((name, name) for name in _names())

    def defaults(self, name: str) -> Kwargs:
        """Arguments under which published weights give their published accuracy.

        They differ from those of the bare constructor: heads that only training uses are left out, the input
        is re-normalised where the weights need it, position embeddings are made for the published size.
        """
        accepted = _parameters(name)
        values: dict[str, Any] = {}
        if "aux_logits" in accepted:
            values["aux_logits"] = False
        if "transform_input" in accepted:
            values["transform_input"] = True
        if "image_size" in accepted:
            values["image_size"] = _default_weights(name).meta["min_size"][0]
        return values

    def variants(self, name: str) -> tuple[Kwargs, ...]:
        """The image sizes of the published weights, where the network has position embeddings."""
        if "image_size" not in _parameters(name):
            return ({},)
        sizes = {weights.meta["min_size"][0] for weights in get_model_weights(name)}
        return tuple({"image_size": size} for size in sorted(sizes))

    def training_only(self, name: str) -> Kwargs:
        """Arguments that add auxiliary classifiers."""
        return {"aux_logits": True} if "aux_logits" in _parameters(name) else {}

    def input(self, name: str, kwargs: Kwargs, file: str) -> InputSpec:
        """What the published weights were evaluated with: those called `file`, else the default ones."""
        published = list(get_model_weights(name))
        fitting = [w for w in published if kwargs.get("image_size") in (None, w.meta["min_size"][0])]
        exact = [w for w in fitting if PurePosixPath(w.url).name == file]
        default = _default_weights(name)
        chosen = exact[0] if exact else default if default in fitting or not fitting else fitting[0]
        transform = chosen.transforms()
        spec = InputSpec(
            height=transform.crop_size[0],
            width=transform.crop_size[0],
            mean=tuple(transform.mean),
            std=tuple(transform.std),
            resize=transform.resize_size[0],
        )
        return with_channels(spec, kwargs.get("in_channels", 3))

    def build(self, name: str, kwargs: Kwargs) -> nn.Module:
        """Build the network with random weights."""
        label = f"torchvision:{name}"
        refuse(kwargs, _RESERVED, label)
        arguments = dict(kwargs)
        channels = arguments.pop("in_channels", 3)
        if channels != 3 and "transform_input" in arguments:
            # The transform is written for red, green and blue.
            arguments["transform_input"] = False
        module = call(get_model_builder(name), label, {**arguments, "weights": None})
        if channels != 3:
            _replace_stem(module, channels)
        return module


@cache
def _names() -> tuple[str, ...]:
    return tuple(list_models(module=torchvision.models))


@cache
def _parameters(name: str) -> frozenset[str]:
    """Arguments of the class that the builder of `name` says it returns."""
    returned = typing.get_type_hints(get_model_builder(name))["return"]
    return frozenset(inspect.signature(returned).parameters)


def _default_weights(name: str) -> Any:
    return get_model_weights(name).DEFAULT


def _replace_stem(module: nn.Module, channels: int) -> None:
    """Exchange the first convolution of `module` for one that reads `channels` channels."""
    path, old = next((path, part) for path, part in module.named_modules() if isinstance(part, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        dilation=old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    parent, _, child = path.rpartition(".")
    setattr(module.get_submodule(parent), child, new)
