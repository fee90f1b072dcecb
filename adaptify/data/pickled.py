"""Reading the pickles of CIFAR's python batches: bytes, numbers, text, lists, dicts and arrays of bytes.

A pickle names functions and calls them, and what numpy's own make of a file's words can be wrong in any way:
arrays of any size, types that numpy itself stumbles over. None of them is called here. What a file says of an
array is kept as it is, and becomes one once it has been checked.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")  # the older and the newer name
_BYTE_TYPES = ("u1", b"u1")
_NEWEST = 4  # the protocol; later ones have operations that make room for any number of bytes
_MOST = 1 << 30  # bytes; the largest batch, that of CIFAR-100, has 155 MB


def read_pickle(path: Path) -> Any:
    """Return what a pickle holds; arrays of the values of a dict as (...) uint8.

    It takes memory in proportion to the file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It asks for any other object. (A damaged pickle can also raise anything else.)
    """
    if path.stat().st_size > _MOST:
        raise ValueError(f"it is larger than {_MOST >> 30} GiB")
    value = _Unpickler(path.read_bytes()).load()
    if isinstance(value, dict):
        return {key: item.array() if isinstance(item, _Array) else item for key, item in value.items()}
    return value


class _Type:
    """A type of numbers, by the code that a file gives it."""

    def __init__(self, code: object = None, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment, which bytes have none of."""


class _Array:
    """An array, as a file describes it."""

    def __init__(self, *_: object) -> None:
        self._state: object = None

    def __setstate__(self, state: object) -> None:
        self._state = state

    def array(self) -> npt.NDArray[np.uint8]:
        """Return the array that is described.

        Raises:
            ValueError: It is not of bytes, or their number does not fit its shape.
        """
        if not isinstance(self._state, tuple) or len(self._state) != 5:
            raise ValueError("an array without its values")
        _, shape, kind, columns_first, data = self._state
        if not isinstance(kind, _Type) or kind.code not in _BYTE_TYPES or not isinstance(data, bytes):
            raise ValueError("an array of something else than bytes")
        sides = isinstance(shape, tuple) and all(isinstance(side, int) and side >= 0 for side in shape)
        if not sides or math.prod(shape) != len(data):
            raise ValueError("an array whose shape does not fit its values")
        values: npt.NDArray[np.uint8] = np.frombuffer(data, np.uint8)
        return np.reshape(values, shape, order="F" if columns_first else "C")


class _Unpickler(pickle._Unpickler):
    """The unpickler in Python, without the operations of the newest protocols.

    That in C makes room for whatever number a file gives to an object.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        ord(operation.code): pickle._Unpickler.dispatch[ord(operation.code)]
        for operation in pickletools.opcodes
        if operation.proto <= _NEWEST
    }

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._encoded: dict[str, bytes] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module in _ARRAY_MODULES and name == "_reconstruct":
            return _Array
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _Type
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not data")

    def _encode(self, text: str, encoding: str = "latin1") -> bytes:
        """Make bytes of how Python 3 writes them in protocol 2: once, however often a file asks for them."""
        if encoding != "latin1" or not isinstance(text, str):
            raise pickle.UnpicklingError(f"it encodes text as {encoding!r}, which bytes are not written in")
        return self._encoded.setdefault(text, text.encode("latin1"))
