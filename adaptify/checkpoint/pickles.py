"""Reading what `torch.save` wrote without running code from the file.

A pickle names functions and calls them. PyTorch's restricted unpickler (`weights_only=True`) only calls
those that rebuild tensors. To these are added here the few classes that training scripts commonly leave
beside the weights and whose construction does nothing but store values.
"""

from __future__ import annotations

import argparse
import pathlib
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch

from adaptify.bounds import brief
from adaptify.errors import ModelError
from adaptify.models.user_code import search_working_folder

_REFUSED = re.compile(r"GLOBAL (\S+)")
_SAVE_WEIGHTS = "save only the weights: torch.save(model.state_dict(), 'weights.pt')"
# What torch lets a pickle call, with any number: it would take and fill as much memory as that says.
_UNBOUNDED = frozenset({"builtins.bytearray", "__builtin__.bytearray"})
_HARMLESS = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_(?!nested)\w+|torch\.\w*Storage|torch\.storage\.\w+"
)


def unpickle(path: Path, *, trust: bool) -> Any:
    """Return the object in a file of `torch.save`, with its tensors on the CPU.

    Args:
        path: The file, in the zip format or the older one.
        trust: Whether code that the file names may run.

    Raises:
        ModelError: The file is damaged, or holds other objects than tensors and plain values.
    """
    if trust:
        search_working_folder()
    elif unbounded := next((name for name in _other_globals(path) if name in _UNBOUNDED), None):
        raise _more_than_tensors(path, f"{unbounded}, which could take any amount of memory")
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
        raise _explain(error, path, trust) from error


def _explain(error: Exception, path: Path, trust: bool) -> ModelError:
    if trust and isinstance(error, ImportError | AttributeError):
        return ModelError(
            f"{path} needs code that cannot be imported: {error}",
            f"Run in the folder where that code is, or {_SAVE_WEIGHTS}",
        )
    text = str(error)
    named = [] if trust else list(_other_globals(path))
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


def _other_globals(path: Path) -> Iterator[str]:
    """Functions and classes a pickle names besides those that are allowed. Nothing is imported."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(name) as file:
                    yield from _named(file, pickles=1)
        else:
            # The older format is a row of pickles: magic number, protocol, system, object, keys.
            with path.open("rb") as file:
                yield from _named(file, pickles=5)
    except Exception:  # whatever is damaged; it is found, and told of, when the file is loaded
        return


def _named(file: IO[bytes], *, pickles: int) -> Iterator[str]:
    values = (entry if isinstance(entry, tuple) else (entry, _full_name(entry)) for entry in _plain_values())
    allowed = {name for _, name in values}
    for _ in range(pickles):
        texts: list[str] = []  # texts in the order in which they are put on the stack
        memo: list[str] = []
        argument: Any
        for opcode, argument, _ in pickletools.genops(file):
            name = ""
            if opcode.name == "GLOBAL":
                name = str(argument).replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL":
                name = ".".join(texts[-2:])
            elif opcode.name == "MEMOIZE":
                memo.append(texts[-1] if texts else "")
            elif opcode.name in {"BINGET", "LONG_BINGET"} and argument < len(memo):
                texts.append(memo[argument])
            elif isinstance(argument, str):
                texts.append(argument)
            if name and not _HARMLESS.fullmatch(name) and name not in allowed:
                yield name


def _full_name(value: Callable[..., Any]) -> str:
    return f"{value.__module__}.{value.__qualname__}"


@cache
def _plain_values() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Classes whose instances are values and nothing more, under the names that pickles use for them."""
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        argparse.Namespace,
        np.ndarray,
        np.dtype,
        *{type(np.dtype(code)) for code in np.typecodes["All"]},
    ]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        # Pickles name numpy's functions by where they lived at the time.
        allowed += [(_array, f"{module}._reconstruct"), (_scalar, f"{module}.scalar")]
    for module in ("pathlib", "pathlib._local"):
        # Paths of the other system cannot be instantiated; what a path means here is only its text.
        for pure in (pathlib.PurePosixPath, pathlib.PureWindowsPath):
            for name in (pure.__name__, pure.__name__.removeprefix("Pure")):
                allowed.append((pure, f"{module}.{name}"))
    return allowed


def _array(kind: type, shape: tuple[int, ...], code: bytes) -> npt.NDArray[Any]:
    """Make an array to be filled, as numpy writes it: an empty one, where numpy would take any shape."""
    if kind is not np.ndarray or tuple(shape) != (0,):
        raise ValueError(f"an array is made with the shape {shape}")
    return np.empty(0)


def _scalar(dtype: np.dtype[Any], value: bytes) -> Any:
    """Make a number from its bytes; numpy would take any size, and fill in what is missing."""
    if dtype.hasobject or not isinstance(value, bytes) or len(value) != dtype.itemsize:
        raise ValueError(f"a number of type {dtype} is made of something else than its bytes")
    return np.frombuffer(value, dtype)[0]
