"""Networks that a user brings: `package.module:callable`."""

from __future__ import annotations

import importlib
import importlib.util
import operator
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from adaptify.errors import UsageError, did_you_mean
from adaptify.input_spec import InputSpec
from adaptify.models.source import Kwargs, call


def search_working_folder() -> None:
    """Let modules of the current directory be imported, as `python -m` does."""
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)


def import_callable(reference: str) -> Callable[..., Any]:
    """Import `package.module:callable`, with the current directory on the path.

    Raises:
        UsageError: The module cannot be imported, or has no such callable.
    """
    path, _, attribute = reference.partition(":")
    search_working_folder()
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        # ModuleNotFoundError.name tells a wrong path from a dependency that is missing inside the module.
        inside = getattr(error, "name", None) not in {path, path.partition(".")[0]}
        raise UsageError(
            f"cannot import '{path}': {error}",
            "Install what the module needs."
            if inside
            else f"Is {path.replace('.', os.sep)}.py in {os.getcwd()}?",
        ) from error
    except Exception as error:
        raise UsageError(
            f"cannot import '{path}': {type(error).__name__}: {error}",
            "The module fails when it is imported.",
        ) from error
    try:
        found = operator.attrgetter(attribute)(module)
    except AttributeError as error:
        names = [name for name, value in vars(module).items() if callable(value)]
        raise UsageError(
            f"module '{path}' has no '{attribute}'{did_you_mean(attribute, names)}",
            "Give a function or class that returns the network, as package.module:callable.",
        ) from error
    if isinstance(found, nn.Module) or not callable(found):
        raise UsageError(
            f"'{reference}' is {type(found).__name__}, not a function or class that builds a network",
            "Give a function or class that returns the network, as package.module:callable.",
        )
    return found  # type: ignore[no-any-return]


class UserCode:
    """Source of everything that can be imported. It has no prefix and no list of names."""

    prefix = ""
    searchable = False

    def names(self) -> tuple[str, ...]:
        """None: any callable will do."""
        return ()

    def knows(self, name: str) -> bool:
        """Whether `name` has the form of a reference to a callable."""
        path, colon, attribute = name.partition(":")
        return bool(colon) and all(part.isidentifier() for part in [*path.split("."), *attribute.split(".")])

    def importable(self, path: str) -> bool:
        """Whether there is a module or package that the dotted `path` begins with."""
        search_working_folder()
        return importlib.util.find_spec(path.partition(".")[0]) is not None

    def titles(self) -> Iterable[tuple[str, str]]:
        """None."""
        return ()

    def defaults(self, name: str) -> Kwargs:
        """None."""
        return {}

    def variants(self, name: str) -> tuple[Kwargs, ...]:
        """One: only what the user says."""
        return ({},)

    def training_only(self, name: str) -> Kwargs:
        """None."""
        return {}

    def input(self, name: str, kwargs: Kwargs, file: str) -> InputSpec:
        """The convention of ImageNet, for want of anything better."""
        return InputSpec()

    def build(self, name: str, kwargs: Kwargs) -> nn.Module:
        """Import the callable and call it. This runs the user's code."""
        return call(import_callable(name), name, kwargs)
