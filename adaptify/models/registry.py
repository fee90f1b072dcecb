"""Names of architectures and what they build.

A name is `torchvision:resnet50`, `timm:NAME`, `adaptify:cifar_resnet56` or `package.module:callable`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from adaptify.errors import ModelError, UsageError, did_you_mean
from adaptify.input_spec import InputSpec
from adaptify.models.own import Own
from adaptify.models.session import Session
from adaptify.models.skeleton import ParametersOnMeta
from adaptify.models.source import Source
from adaptify.models.timm_models import Timm
from adaptify.models.torchvision_models import Torchvision
from adaptify.models.user_code import UserCode

# In the order in which a name without a prefix is looked up.
SOURCES: Mapping[str, Source] = {source.prefix: source for source in (Own(), Torchvision(), Timm())}
_USER_CODE = UserCode()
_SESSION = Session()
_NO_KWARGS: Mapping[str, Any] = MappingProxyType({})


class TensorSpec(NamedTuple):
    """A named tensor of a network: its shape, and whether loading may leave it as the constructor made it."""

    shape: tuple[int, ...]
    optional: bool


@dataclass(frozen=True)
class Architecture:
    """A network without weights: a name and the arguments of its builder.

    Attributes:
        name: Name with its prefix.
        kwargs: Arguments for the builder, all of them JSON values.
        input: The images it expects.
    """

    name: str
    kwargs: Mapping[str, Any]
    input: InputSpec

    @property
    def is_public(self) -> bool:
        """Whether it can be built without code of the user. Building any other runs the code it names."""
        return self.name.partition(":")[0] in (*SOURCES, _SESSION.prefix)

    def build(self) -> nn.Module:
        """Build the network with random weights, on the CPU. Nothing is downloaded.

        Raises:
            UsageError: The builder cannot be found, or refuses the arguments.
        """
        source, name = _split(self.name)
        if not source.knows(name):  # it may come from a file
            raise UsageError(
                f"unknown architecture '{self.name}'",
                "The file was made where it is known: install the package that it was made with.",
            )
        return source.build(name, self.kwargs)

    def build_meta(self) -> nn.Module:
        """Build the network with its parameters on the meta device; with real ones if it does not allow that.

        Raises:
            UsageError: As `build`.
        """
        try:
            with ParametersOnMeta():
                return self.build()
        except UsageError:
            return self.build()

    def signature(self) -> Mapping[str, TensorSpec]:
        """Names and shapes of its state dict. Those of public networks are kept for the process.

        Raises:
            UsageError: As `build`.
        """
        if not self.is_public:
            return _signature(self.build_meta())
        return _public_signature(self.name, json.dumps(dict(self.kwargs), sort_keys=True))

    def training_heads(self) -> Mapping[str, TensorSpec]:
        """Tensors of heads that only training uses and that this architecture leaves out."""
        source, name = _split(self.name)
        kwargs = source.training_only(name)
        if not kwargs:
            return {}
        full = Architecture(self.name, {**self.kwargs, **kwargs}, self.input).signature()
        return {key: spec for key, spec in full.items() if key not in self.signature()}

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        spec = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.input).items()}
        return {"name": self.name, "kwargs": dict(self.kwargs), "input": spec}

    @classmethod
    def from_json(cls, value: Any) -> Architecture:
        """The inverse of `to_json`. Nothing is imported or built.

        Raises:
            ModelError: `value` is not what `to_json` gives.
        """
        try:
            given = dict(value["input"])
            sizes = {key: given.pop(key) for key in ("channels", "height", "width", "resize")}
            if not all(isinstance(size, int) and size > 0 for size in sizes.values() if size is not None):
                raise ValueError(f"sizes {sizes}")
            mean, std = (tuple(map(float, given.pop(key))) for key in ("mean", "std"))
            spec = InputSpec(**sizes, mean=mean, std=std, **given)
            if not sizes["channels"] == len(spec.mean) == len(spec.std):
                raise ValueError("mean and std have to be given for every channel")
            return cls(str(value["name"]), dict(value["kwargs"]), spec)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"not the description of an architecture: {error}",
                "The file is damaged, or no version of adaptify wrote it: make it again.",
            ) from error


def resolve(name: str, kwargs: Mapping[str, Any] = _NO_KWARGS, *, file: str = "") -> Architecture:
    """Look up an architecture. Nothing is built, and code of the user is not imported yet.

    Args:
        name: `torchvision:NAME`, `timm:NAME`, `adaptify:NAME`, `package.module:callable`, or a name
            without a prefix, which is looked up in every registry.
        kwargs: Arguments for the builder (`num_classes`, `in_channels`, ...).
        file: Name of the checkpoint; published weights that are called so decide the input.

    Raises:
        UsageError: There is no such name, or `kwargs` are not JSON values.
    """
    try:
        given = json.loads(json.dumps(dict(kwargs)))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"arguments of {name} have to be JSON values: {error}",
            "Give numbers, texts, lists and dictionaries of them.",
        ) from error
    source, bare = _find(name)
    full = f"{source.prefix}:{bare}" if source.prefix else bare
    arguments = {**source.defaults(bare), **given}
    try:
        spec = source.input(bare, arguments, file)
    except (TypeError, ValueError, IndexError) as error:
        raise UsageError(
            f"arguments {given} do not suit {full}: {error}",
            "Check their names and values (--arch-kwargs) against the builder's.",
        ) from error
    return Architecture(full, arguments, spec)


def is_public_name(text: str) -> bool:
    """Whether `text` names a network of a registry, with its prefix: `torchvision:resnet50`."""
    prefix, colon, _ = text.partition(":")
    return bool(colon) and prefix in SOURCES


def is_user_code(arch: str | None) -> bool:
    """Whether a network is built by a callable of the user (`package.module:callable`), which is run then."""
    return arch is not None and ":" in arch and not is_public_name(arch)


def names() -> tuple[str, ...]:
    """All public names with their prefixes. Imports timm where it is installed."""
    return tuple(f"{source.prefix}:{name}" for source in SOURCES.values() for name in source.names())


def _find(name: str) -> tuple[Source, str]:
    prefix, colon, rest = name.partition(":")
    if not colon:
        for source in SOURCES.values():
            if source.knows(name):
                return source, name
        raise UsageError(
            f"unknown architecture '{name}'{_nearest(name)}",
            "Give torchvision:NAME, timm:NAME, adaptify:NAME or package.module:callable.",
        )
    if prefix not in SOURCES:
        misspelt = did_you_mean(prefix, SOURCES) and not _USER_CODE.importable(prefix)
        if misspelt or not _USER_CODE.knows(name):
            raise UsageError(
                f"unknown architecture '{name}'{_nearest(name)}",
                f"Give {', '.join(f'{known}:NAME' for known in SOURCES)} or package.module:callable.",
            )
        return _USER_CODE, name
    source = SOURCES[prefix]
    if source.knows(rest):
        return source, rest
    if isinstance(source, Timm) and not source.installed:
        raise UsageError(f"'{name}' needs timm, which is not installed", "pip install timm")
    raise UsageError(
        f"unknown architecture '{name}'{did_you_mean(rest, source.names())}",
        f"`{prefix}` offers {len(source.names())} networks, among them {', '.join(source.names()[:3])}.",
    )


def _split(name: str) -> tuple[Source, str]:
    """Source and bare name of a name that has been resolved, or was read from a file."""
    prefix, _, bare = name.partition(":")
    if prefix == _SESSION.prefix:
        return _SESSION, bare
    return (SOURCES[prefix], bare) if prefix in SOURCES else (_USER_CODE, name)


def _nearest(name: str) -> str:
    by_bare_name = {full.partition(":")[2]: full for full in reversed(names())}
    bare = name.rpartition(":")[2]
    if bare not in by_bare_name:
        # Who asks for `resnet56` means `cifar_resnet56`: the end of a name counts for the whole.
        ends = [known for known in by_bare_name if len(bare) > 3 and known.endswith(f"_{bare}")]
        close = ends[-1:] or difflib.get_close_matches(bare, by_bare_name, n=1)
        if not close:
            return ""
        bare = close[0]
    return f"; did you mean '{by_bare_name[bare]}'?"


@lru_cache(maxsize=512)
def _public_signature(name: str, kwargs: str) -> Mapping[str, TensorSpec]:
    architecture = Architecture(name, json.loads(kwargs), InputSpec())
    return MappingProxyType(_signature(architecture.build_meta()))


def _signature(module: nn.Module) -> dict[str, TensorSpec]:
    """Integer buffers (counters, indices) are optional: constructors compute them."""
    state = module.state_dict()
    return {
        name: TensorSpec(tuple(tensor.shape), not (tensor.is_floating_point() or tensor.is_complex()))
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor)
    }
