"""Reading what `torch.save` wrote without running code from the file.

A pickle names functions and calls them. PyTorch's restricted unpickler (`weights_only=True`) only calls
those that rebuild tensors. To these are added here the few classes that training scripts commonly leave
beside the weights and whose construction does nothing but store values.
"""

from __future__ import annotations

import argparse
import io
import pathlib
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from adaptify.bounds import brief, room
from adaptify.checkpoint import numpy_values
from adaptify.checkpoint.pickle_costs import UnboundedError
from adaptify.checkpoint.pickle_scan import scan
from adaptify.errors import ModelError
from adaptify.models.user_code import search_working_folder

_REFUSED = re.compile(r"GLOBAL (\S+)")
_SAVE_WEIGHTS = "save only the weights: torch.save(model.state_dict(), 'weights.pt')"
# What torch allows, and is not to blame where a file cannot be read.
_HARMLESS = re.compile(
    r"collections\.(OrderedDict|Counter)|builtins\.(set|bytearray|complex)|_codecs\.encode|torch\.(Size|device)"
    r"|torch\._utils\._rebuild_(?!nested)\w+|torch\.\w*Storage|torch\.storage\.\w+"
)


def unpickle(path: Path, *, trust: bool) -> Any:
    """Return the object in a file of `torch.save`, with its tensors on the CPU.

    Args:
        path: The file, in the zip format or the older one.
        trust: Whether code that the file names may run.

    Raises:
        ModelError: The file is damaged, or holds other objects than tensors and plain values.
    """
    named: tuple[str, ...] = ()
    if trust:
        search_working_folder()
    else:
        named, stopped = _scan(path)
        if isinstance(stopped, UnboundedError):
            raise _more_than_tensors(path, f"{stopped}, which could take any amount of memory") from stopped
        if stopped is not None:
            raise _explain(stopped, path, named) from stopped
    try:
        # An open file, because torch.load takes the end of a name for the format.
        with (
            path.open("rb") as file,
            warnings.catch_warnings(),
            torch.serialization.safe_globals(_plain_values()),
        ):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=not trust)
    except MemoryError:
        raise
    except Exception as error:
        if trust and isinstance(error, ImportError | AttributeError):
            raise ModelError(
                f"{path} needs code that cannot be imported: {error}",
                f"Run in the folder where that code is, or {_SAVE_WEIGHTS}",
            ) from error
        raise _explain(error, path, named) from error


def _explain(error: Exception, path: Path, named: tuple[str, ...]) -> ModelError:
    text = str(error)
    if named:
        found = _REFUSED.search(text)
        return _more_than_tensors(path, f"{found[1] if found else named[0]}, which could run code")
    if "Unsupported operand" in text:
        return ModelError(
            f"{path} is a pickle of a protocol that cannot be read without running it",
            f"If you trust where it comes from, add --trust-pickle; better, {_SAVE_WEIGHTS}",
        )
    reason = (text.partition("WeightsUnpickler error:")[2] or text).strip() or type(error).__name__
    return ModelError(
        f"{path} is damaged or cut short: {brief(reason)}", "Copy or download the checkpoint again."
    )


def _more_than_tensors(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{path} holds more than tensors: it refers to {what}; nothing of it was executed",
        f"If you trust where it comes from, add --trust-pickle; better, {_SAVE_WEIGHTS}",
    )


def _scan(path: Path) -> tuple[tuple[str, ...], Exception | None]:
    """What a file names besides what is allowed, and what ended the search early. Nothing is imported."""
    named: dict[str, None] = {}
    values = (entry if isinstance(entry, tuple) else (entry, _full_name(entry)) for entry in _plain_values())
    allowed = {name for _, name in values}
    try:
        for name in _globals(path):
            if name not in allowed and not _HARMLESS.fullmatch(name):
                named[name] = None
    except OSError:
        raise
    except Exception as error:  # the readers of archives and pickles let through what their parts raise
        return tuple(named), error
    return tuple(named), None


def _globals(path: Path) -> Iterator[str]:
    most = room(path.stat().st_size)
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            # The older format is a row of pickles: magic number, protocol, system, object, keys.
            file.seek(0)
            yield from scan(file, 5, most)
            return
    with zipfile.ZipFile(path) as archive:
        # All that torch could take for it: names may be there twice, or differ in their case.
        for entry in archive.infolist():
            if entry.filename.lower().endswith("data.pkl"):
                # As a whole, for an entry of an archive is slow in giving out single bytes.
                yield from scan(io.BytesIO(archive.read(entry)), 1, most)


def _full_name(value: Callable[..., Any]) -> str:
    return f"{value.__module__}.{value.__qualname__}"


@cache
def _plain_values() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Classes whose instances are values and nothing more, under the names that pickles use for them."""
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        argparse.Namespace,
        (numpy_values.Array, "numpy.ndarray"),
        (numpy_values.Type, "numpy.dtype"),
    ]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        # Pickles name numpy's functions by where they lived at the time.
        allowed += [
            (numpy_values.array, f"{module}._reconstruct"),
            (numpy_values.scalar, f"{module}.scalar"),
        ]
    for module in ("pathlib", "pathlib._local"):
        # Paths of the other system cannot be instantiated; what a path means here is only its text.
        for pure in (pathlib.PurePosixPath, pathlib.PureWindowsPath):
            for name in (pure.__name__, pure.__name__.removeprefix("Pure")):
                allowed.append((pure, f"{module}.{name}"))
    return allowed
