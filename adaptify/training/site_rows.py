"""The cached values of one site: rows appended batch by batch, in memory or in a plain binary file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptify.errors import AdaptifyError

_BLOCK_BYTES = 1 << 20


class SiteRows:
    """An array (N, D) that grows at its end and is read in pieces, so that it need not fit in memory.

    Memory and file are the same thing here, a binary stream. A file is read and never mapped, because
    mapped pages count as resident memory.

    Args:
        width: D.
        dtype: Type of the stored values.
        stream: Holds the rows.
        path: The file behind the stream; `None` for memory.
    """

    def __init__(self, width: int, dtype: np.dtype[Any], stream: BinaryIO, path: Path | None) -> None:
        self.width = width
        self.dtype = dtype
        self.path = path
        self._stream = stream
        self._rows = stream.seek(0, io.SEEK_END) // self.row_bytes

    @classmethod
    def create(cls, width: int, dtype: np.dtype[Any], path: Path | None = None) -> SiteRows:
        """No rows yet, in a new file or (`None`) in memory.

        Raises:
            AdaptifyError: The file cannot be made.
        """
        with _writing(path):
            return cls(width, dtype, io.BytesIO() if path is None else path.open("w+b"), path)

    @classmethod
    def open(cls, width: int, dtype: np.dtype[Any], path: Path) -> SiteRows:
        """The rows in an existing file, to be read.

        Raises:
            OSError: There is no such file.
        """
        return cls(width, dtype, path.open("rb"), path)

    def __len__(self) -> int:
        return self._rows

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.width * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return len(self) * self.row_bytes

    def append(self, values: NDArray[Any]) -> None:
        """Add rows (B, D), converted to `dtype`.

        Raises:
            AdaptifyError: The disk is full.
        """
        with _writing(self.path):
            self._stream.write(values.astype(self.dtype, copy=False).tobytes())
            self._stream.flush()  # a full disk shows here, and not when the file is closed
        self._rows += len(values)

    def copy_to(self, path: Path | None, dtype: np.dtype[Any]) -> SiteRows:
        """The same rows as another type, in a new file or (`None`) in memory.

        Raises:
            AdaptifyError: The disk is full.
        """
        copy = SiteRows.create(self.width, dtype, path)
        try:
            for block in self.blocks():
                copy.append(block.numpy())
        except BaseException:
            copy.delete()
            raise
        return copy

    def read_into(self, first: int, out: NDArray[Any]) -> None:
        """Fill `out` (B, D), contiguous and of type `dtype`, with the rows from `first` on.

        Raises:
            AdaptifyError: The file has become shorter.
        """
        self._stream.seek(first * self.row_bytes)
        view = out.reshape(-1).view(np.uint8).data
        if self._stream.readinto(view) != len(view):  # type: ignore[attr-defined]
            raise AdaptifyError(f"{self.path} has been cut short", "Make the features again.")

    def blocks(self) -> Iterator[Tensor]:
        """All rows in order, as tensors (B, D) of the stored type and of bounded size."""
        step = max(1, _BLOCK_BYTES // self.row_bytes)
        for first in range(0, len(self), step):
            out = np.empty((min(step, len(self) - first), self.width), self.dtype)
            self.read_into(first, out)
            yield torch.from_numpy(out)

    def tensor(self) -> Tensor:
        """All rows at once: (N, D) of the stored type."""
        out = np.empty((len(self), self.width), self.dtype)
        self.read_into(0, out)
        return torch.from_numpy(out)

    def close(self) -> None:
        """Release the memory, or close the file."""
        with suppress(OSError):  # bytes that found no room would be tried again; `append` has told of them
            self._stream.close()

    def delete(self) -> None:
        """Close, and remove the file."""
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AdaptifyError(
            f"cannot write features to {path}: {error.strerror or error}",
            "Free some space, or choose a folder on another disk.",
        ) from error
