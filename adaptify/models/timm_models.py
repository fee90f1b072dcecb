"""The networks of timm, where it is installed, under the prefix `timm:`."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import nn

from adaptify.input_spec import InputSpec
from adaptify.models.source import Kwargs, call, refuse, with_channels

_RESERVED = frozenset(
    {
        "model_name",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "checkpoint_path",
        "cache_dir",
        "features_only",
    }
)


class Timm:
    """Source of `timm.models`. timm is imported by the first question about a name.

    `in_channels` is translated to what timm calls `in_chans`.
    """

    prefix = "timm"
    searchable = False  # more than a thousand networks: only tried by name

    @property
    def installed(self) -> bool:
        """Whether timm can be imported."""
        return importlib.util.find_spec("timm") is not None

    def names(self) -> tuple[str, ...]:
        """All names, without the prefix and without tags of weights; empty when timm is missing."""
        return _names() if self.installed else ()

    def knows(self, name: str) -> bool:
        """Whether `name` can be built; it may carry a tag of published weights, as in `resnet50.a1_in1k`."""
        if not self.installed:
            return False
        import timm

        if "." in name:
            try:
                timm.models.get_pretrained_cfg(name, allow_unregistered=False)
            except RuntimeError:
                return False
        return bool(timm.models.is_model(name))

    def titles(self) -> Iterable[tuple[str, str]]:
        """Files are called as the networks are, published ones with their tag."""
        if not self.installed:
            return ()
        import timm

        return ((name, name) for name in (*_names(), *timm.list_models(pretrained=True, include_tags=True)))

    def defaults(self, name: str) -> Kwargs:
        """None."""
        return {}

    def variants(self, name: str) -> tuple[Kwargs, ...]:
        """One: the image size has to be given with `img_size` where it differs."""
        return ({},)

    def training_only(self, name: str) -> Kwargs:
        """None."""
        return {}

    def input(self, name: str, kwargs: Kwargs, file: str) -> InputSpec:
        """What the published weights (those of the tag, where there is one) were trained with."""
        import timm

        config = timm.models.get_pretrained_cfg(name)
        if config is None:
            return with_channels(InputSpec(), kwargs.get("in_channels", 3))
        channels, height, width = config.input_size
        if "img_size" in kwargs:
            size = kwargs["img_size"]
            height, width = (size, size) if isinstance(size, int) else tuple(size)
        spec = InputSpec(
            channels=channels,
            height=height,
            width=width,
            mean=tuple(config.mean),
            std=tuple(config.std),
            resize=math.floor(min(height, width) / config.crop_pct),
        )
        return with_channels(spec, kwargs.get("in_channels", kwargs.get("in_chans", channels)))

    def build(self, name: str, kwargs: Kwargs) -> nn.Module:
        """Build the network with random weights."""
        import timm

        label = f"timm:{name}"
        refuse(kwargs, _RESERVED, label)
        arguments: dict[str, Any] = dict(kwargs)
        if "in_channels" in arguments:
            arguments["in_chans"] = arguments.pop("in_channels")
        return call(timm.create_model, label, {**arguments, "model_name": name, "pretrained": False})


@cache
def _names() -> tuple[str, ...]:
    import timm

    return tuple(timm.list_models())
