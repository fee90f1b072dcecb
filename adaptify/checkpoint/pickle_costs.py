"""How much memory the calls in a pickle could take, estimated from the sizes of their arguments.

A few bytes of a pickle call a function with all that stands before them: a list of 100,000 items goes into
100,000 sets with five bytes each. So each call is charged, in bytes, with what its arguments take, lists in
lists written out, and with what its function is known to make of them.
"""

from __future__ import annotations

import encodings.aliases
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adaptify.bounds import brief

_ITEM = 8
_WIDEST = 16  # bytes of an element of a tensor
_UNBOUND = 512  # bytes of a tensor of its own, which each element becomes where a tensor is gone through
_DEEPEST = 1000
_ENDLESS = 1 << 62

# How many times as much as a list of its arguments takes is taken by what a callable makes of them.
_TIMES = {
    "builtins.set": 8,
    "builtins.frozenset": 8,
    "collections.OrderedDict": 8,
    "collections.Counter": 8,
    "numpy.dtype": 32,  # fields, described in a text
}
_TYPED = "torch._tensor._rebuild_from_type_v2"  # (function, type, arguments, state)
_REBUILDS = re.compile(r"torch\._utils\._rebuild_\w+|torch\.nn\.parameter\.Parameter")
_COPIES = "torch._utils._rebuild_device_"  # of these, what begins so copies a tensor; others only look at it
# These take numbers for sizes, and copy lists of any depth. What is saved calls them without arguments.
_BY_SIZE = re.compile(r"torch\.(\w+\.)*\w*(Tensor|Storage)|numpy\.ndarray")

_FILLS = "builtins.bytearray"  # (number of bytes), or as the next
_ENCODES = "_codecs.encode"  # (text or bytes, codec, what to do about errors)
_EXACT = frozenset({"ascii", "latin_1"})
_QUADRATIC = frozenset({"idna", "punycode"})  # in the time that they take: never wanted
_LONGEST_CHARACTER = 10  # "\\U0001f600"
_LONGEST_NAME = 100  # of a character, as "namereplace" writes it


class UnboundedError(ValueError):
    """A pickle asks for memory out of proportion to its size; the message names what it calls."""


@dataclass(frozen=True, slots=True)
class Name:
    """A function or class, by its full name."""

    text: str


@dataclass(eq=False, slots=True)
class Made:
    """What is not in the pickle as such: what a call makes, a dictionary, a set, a storage.

    Attributes:
        size: Bytes of a list of what is in it.
        elements: How many values it may give when it is gone through, for tensors, storages and arrays.
        tensor: Whether it is a tensor for certain.
    """

    size: int = 0
    elements: int = 0
    tensor: bool = False


class Costs:
    """What calls could take, up to a limit in bytes."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    def call(self, function: Any, arguments: Any) -> Made:
        """Account for a call.

        Raises:
            UnboundedError: It is too much.
            ValueError: It is not a call of something that has a name.
        """
        while isinstance(function, Name) and function.text == _TYPED and len(arguments) == 4:
            self.spend(_TYPED, arguments[3:], 8)
            function, _, arguments, _ = arguments
        if not isinstance(function, Name) or type(arguments) is not tuple:
            raise ValueError("a call of something that is no function, or of a function with no arguments")
        name = function.text
        if _BY_SIZE.fullmatch(name):
            if arguments:
                raise UnboundedError(name)
            return Made(tensor=True)
        if _REBUILDS.fullmatch(name):
            self.spend(name, arguments, each=_WIDEST, looks=not name.startswith(_COPIES))
            return Made(elements=_elements(arguments), tensor=True)
        if name in {_FILLS, _ENCODES}:
            return Made(self._encode(name, arguments))
        return Made(self.spend(name, arguments, _TIMES.get(name, 1)), _elements(arguments))

    def build(self, made: Made, state: Any) -> None:
        """Account for a state that is given to what a call has made, in place of what it had.

        Raises:
            UnboundedError: It is too much.
        """
        # Tensors, arrays and types take tuples; to others the items of a dictionary are added.
        values, times = (state, 1) if type(state) is tuple else ((state,), 8)
        made.size += self.spend("a state", values, times, looks=made.tensor)
        made.elements = max(made.elements, _elements(values))

    def _encode(self, name: str, arguments: tuple[Any, ...]) -> int:
        """Account for bytes that are made, of a text and a codec or, by bytearray, of anything."""
        told, times, more = name, 1, 0
        if name == _FILLS and len(arguments) == 1:
            more = arguments[0] if type(arguments[0]) is int else 0
        elif arguments:
            codec = arguments[1] if len(arguments) > 1 else "utf_8"
            told = f"{name} with {brief(codec, 30)}" if isinstance(codec, str) else name
            times = _growth(codec) if len(arguments) < 3 else _LONGEST_NAME
        return times * self.spend(told, arguments, times, more=max(more, 0))

    def spend(
        self,
        name: str,
        values: Sequence[Any],
        times: int = 1,
        *,
        more: int = 0,
        each: int = _UNBOUND,
        looks: bool = False,
    ) -> int:
        """Take so many times the size of values, and of something `more`, off what is left; return the size.

        An element of a tensor takes `each` bytes, where the tensor is an item of an argument, or an argument
        that is not only looked at.

        Raises:
            UnboundedError: Nothing is left.
        """
        size = _size(values, self.left // times, each, looks) + more
        self.left -= size * times
        if self.left < 0:
            raise UnboundedError(name)
        return size


def _growth(codec: Any) -> int:
    """How many bytes a codec can make of a character or a byte, or how much slower it is."""
    if not isinstance(codec, str):
        return _ENDLESS
    name = encodings.normalize_encoding(codec[:100].lower()).replace(".", "_")
    name = encodings.aliases.aliases.get(name, name)
    return _ENDLESS if name in _QUADRATIC else 1 if name in _EXACT else _LONGEST_CHARACTER


def _size(values: Sequence[Any], most: int, each: int, looks: bool) -> int:
    """Bytes of a copy of values with all the lists and tuples in it, or something more than `most`."""
    total = 0
    within = [iter(values)]
    while within:
        depth = len(within)
        for value in within[-1]:
            total += _ITEM
            kind = type(value)
            if kind is tuple or kind is list:
                within.append(iter(value))
                break
            if kind is Made:
                total += value.size
                if value.elements and (depth == 2 or (depth == 1 and not looks)):
                    total += value.elements * each
            elif depth == 1 and (kind is str or kind is bytes):
                total += len(value)
        else:
            within.pop()
        if total > most or depth > _DEEPEST:
            return most + 1
    return total


def _elements(values: Sequence[Any]) -> int:
    """The most elements of a tensor made of these: those of another, or the product of its sides."""
    most = 0
    for value in values:
        kind = type(value)
        if kind is Made:
            most = max(most, value.elements)
        elif kind is tuple or kind is list:
            product, sides = 1, [side for side in value if type(side) is int]
            for side in sides:
                product = min(product * side, _ENDLESS)
            most = max(most, product if sides else 0)
    return most
