"""What a file from a stranger may ask for: limits that readers share, and JSON that is read within them.

A file can ask for far more than it holds: a few bytes that unpack to gigabytes, one number that stands for a
network of any size. What is refused here is out of proportion to the file, or beyond what any file needs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptify.errors import AdaptifyError, UsageError

MOST_TEXT = 64 << 20
"""Bytes of a text file that is read whole, as JSON."""

MOST_RECIPE = 1 << 20
"""Bytes of a recipe."""

MOST_DEPTH = 64
"""Lists and objects within each other."""

MOST_NUMBER = 1 << 20
"""Largest whole number among the arguments of an architecture."""

MOST_SIDE = 1 << 13
"""Pixels of a side of the images that a network takes."""

MOST_CHANNELS = 1 << 12
"""Channels of the images that a network takes."""

_FREE = 64 << 20
_WRITTEN = "the file was written by version"
_RATIO = 20


def room(size: int) -> int:
    """Bytes that a file of `size` bytes may unpack to: 64 MiB, or 20 times as much where that is more."""
    return max(_FREE, _RATIO * size)


def read_text(path: str | os.PathLike[str], most: int = MOST_TEXT) -> str:
    """Read a text file of at most `most` bytes.

    Raises:
        OSError: It cannot be read.
        ValueError: It is too large, or not UTF-8.
    """
    with Path(path).open("rb") as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise ValueError(f"it is larger than {most >> 20} MiB")
    return found.decode("utf-8")


def parse_json(text: str) -> Any:
    """Read JSON that is not nested deeper than `MOST_DEPTH`, and whose integers have at most 64 bits.

    Raises:
        ValueError: It is not JSON, or holds more.
    """
    try:
        value = json.loads(text, parse_int=_integer)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    check_depth(value)
    return value


def refuse_newer(
    value: Mapping[str, Any],
    newest: int,
    source: object,
    *,
    what: str = "version",
    error: type[AdaptifyError] = UsageError,
) -> None:
    """Refuse a file of a format that is newer than this adaptify.

    Args:
        value: What the file holds, with the `version` of its format and that of the `adaptify` behind it.
        newest: The newest version of the format that is known.
        source: What errors call the file.
        what: What errors call the version.
        error: Which error it is.

    Raises:
        AdaptifyError: It is.
    """
    version = value.get("version")
    if isinstance(version, int) and version > newest:
        writer = value.get("adaptify")
        hint = "Update adaptify" if writer is None else f"Update adaptify: {_WRITTEN} {brief(writer)}"
        raise error(f"{source} has {what} {version}; this adaptify reads version {newest}", f"{hint}.")


def brief(what: object, most: int = 200) -> str:
    """The first line of what a reader has to say, or of what stands in a file, cut to `most` characters."""
    text = (str(what).strip().splitlines() or [type(what).__name__])[0]
    return text if len(text) <= most else f"{text[:most]}..."


def check_depth(value: Any) -> None:
    """Make sure that what recurses over a value does not run out of stack.

    Raises:
        ValueError: It is nested deeper than `MOST_DEPTH`.
    """
    level: list[Any] = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MOST_DEPTH):
        if not level:
            return
        inner = [item.values() if isinstance(item, dict) else item for item in level]
        level = [part for items in inner for part in items if isinstance(part, (dict, list))]
    raise ValueError(f"it is nested deeper than {MOST_DEPTH} levels")


def _integer(digits: str) -> int:
    if len(digits) < 20 and abs(value := int(digits)) < 1 << 63:
        return value
    raise ValueError(f"{brief(digits, 30)} has more than 64 bits")
