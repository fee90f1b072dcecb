"""Arrays, numbers and types of numpy, made of what a pickle says without numpy's trust in it.

numpy puts a state from a pickle into place as it is: a list that is shorter than the shape is read beyond its
end, and bytes are taken for objects where the flags of a type do not say that it holds any. Here types are
built by their descriptions, and arrays get only as much content as their shape has room for.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np


class Type:
    """Stands for a `numpy.dtype`, whose byte order, fields and units come as a state after it was made."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not isinstance(code, str):
            raise ValueError("a type of numpy is described by something else than its name")
        self.dtype: np.dtype[Any] = np.dtype(code)
        self._check()

    def __repr__(self) -> str:
        return repr(self.dtype)

    def __setstate__(self, state: Any) -> None:
        _, order, base, names, fields, size, _, _, *more = state
        if base is not None:
            self.dtype = np.dtype((base[0].dtype, base[1]))
        elif names is not None:
            formats, offsets = zip(*((fields[name][0].dtype, fields[name][1]) for name in names), strict=True)
            self.dtype = np.dtype(
                {"names": list(names), "formats": list(formats), "offsets": list(offsets), "itemsize": size}
            )
        elif more and self.dtype.kind in "mM":
            unit, count = more[0][1][:2]
            self.dtype = np.dtype(f"{self.dtype.kind}8[{int(count)}{unit.decode()}]")
        self.dtype = self.dtype.newbyteorder(order)
        self._check()

    def _check(self) -> None:
        if self.dtype.hasobject and self.dtype != np.dtype("O"):
            raise ValueError("a type of numpy has objects in its fields")


class Array(np.ndarray[Any, Any]):
    """An array whose state is checked before it is taken over."""

    def __setstate__(self, state: Any) -> None:
        version, shape, kind, fortran, content = state
        if not isinstance(kind, Type) or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError("an array has no type, or no shape")
        objects, count = kind.dtype.hasobject, math.prod(shape)
        size = count if objects else count * max(kind.dtype.itemsize, 1)
        if type(content) is not (list if objects else bytes) or len(content) != size:
            raise ValueError(f"an array of {count} values has other content")
        checked: Any = (version, shape, kind.dtype, bool(fortran), content)
        super().__setstate__(checked)


def array(kind: type, shape: tuple[int, ...], code: bytes) -> Array:
    """Make an array to be filled, as numpy writes it: an empty one, where numpy would take any shape."""
    if kind is not Array or tuple(shape) != (0,):
        raise ValueError(f"an array is made with the shape {shape}")
    return np.empty(0).view(Array)


def scalar(kind: Type, value: bytes) -> Any:
    """Make a number from its bytes; numpy would take any size, and fill in what is missing."""
    dtype = kind.dtype
    if dtype.hasobject or not isinstance(value, bytes) or len(value) != dtype.itemsize:
        raise ValueError(f"a number of type {dtype} is made of something else than its bytes")
    return np.frombuffer(value, dtype)[0]
