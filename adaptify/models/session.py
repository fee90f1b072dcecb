"""Networks that a caller holds in this process: `session:NAME`. No other process can build them."""

from __future__ import annotations

import copy
import itertools
import re
from weakref import WeakKeyDictionary, WeakValueDictionary

from torch import nn

from adaptify.errors import UsageError
from adaptify.models.source import Kwargs
from adaptify.models.user_code import UserCode

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


class Session(UserCode):
    """Source of the networks that are held in this process. They are found by nobody but who holds them."""

    prefix = "session"

    def knows(self, name: str) -> bool:
        """Any name: `build` says what became of it."""
        return True

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
