"""Networks that a caller holds in this process: `session:NAME`. No other process can build them."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterable
from weakref import WeakKeyDictionary, WeakValueDictionary

from torch import nn

from adaptify.errors import UsageError
from adaptify.input_spec import InputSpec
from adaptify.models.source import Kwargs

_HELD: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()
_OWNERS: WeakKeyDictionary[object, nn.Module] = WeakKeyDictionary()
_NUMBERS = itertools.count(1)


def hold(module: nn.Module) -> str:
    """Make `module` known, for as long as somebody holds it, and return its name."""
    kind = re.sub(r"\W", "_", type(module).__name__)
    name = f"{kind}-{next(_NUMBERS)}"
    _HELD[name] = module
    return f"{Session.prefix}:{name}"


def keep(name: str, owner: object) -> None:
    """Hold the network called `name` for as long as `owner` lives; other names are passed over."""
    prefix, _, bare = name.partition(":")
    if prefix == Session.prefix and bare in _HELD:
        _OWNERS[owner] = _HELD[bare]


class Session:
    """Source of the networks that are held in this process."""

    prefix = "session"
    searchable = False

    def names(self) -> tuple[str, ...]:
        """None: they are found by nobody but who holds them."""
        return ()

    def knows(self, name: str) -> bool:
        """Any name: `build` says what became of it."""
        return True

    def titles(self) -> Iterable[tuple[str, str]]:
        """None."""
        return ()

    def defaults(self, name: str) -> Kwargs:
        """None."""
        return {}

    def variants(self, name: str) -> tuple[Kwargs, ...]:
        """One: the network as it is."""
        return ({},)

    def training_only(self, name: str) -> Kwargs:
        """None."""
        return {}

    def input(self, name: str, kwargs: Kwargs, file: str) -> InputSpec:
        """The convention of ImageNet, for want of anything better."""
        return InputSpec()

    def build(self, name: str, kwargs: Kwargs) -> nn.Module:
        """A copy of the network with the weights that it was given with.

        Raises:
            UsageError: This process does not hold it.
        """
        if name not in _HELD:
            raise UsageError(
                f"session:{name} was made of a module in a Python session that is over, or that let go of it",
                "Make it again with arch='package.module:callable', which says how to build it.",
            )
        return copy.deepcopy(_HELD[name])
