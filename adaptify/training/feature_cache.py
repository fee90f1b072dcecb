"""Cached features of a frozen network: where they lie, and how they are read in bounded memory."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from adaptify.errors import UsageError, did_you_mean
from adaptify.files import write_text
from adaptify.training.site_rows import SiteRows

BUFFER_BYTES = 128 << 20

_HEADER = "features.json"
_LABELS = "labels.bin"
_FORMAT, _VERSION = "adaptify.features", 1
# Rows are read from disk in runs of about this size. Shorter runs mix classes better where images come
# sorted by class; longer ones are faster on a spinning disk.
_CHUNK_BYTES = 64 << 10


class FeatureCache:
    """Values (N, D) of several sites, and labels (N,), of the same N images; see `cache_features`.

    Use it in a `with` statement: files in a temporary folder vanish when it is closed.

    Args:
        sites: The values of each site, by name.
        labels: (N,) int64.
        notes: What the user should know of how the values are stored.
        folder: Where the files are; `None` when all is in memory.
        buffer_bytes: Memory that a shuffled epoch may take for its buffer.
        on_close: Called once, when the cache is closed or forgotten.
    """

    def __init__(
        self,
        sites: Mapping[str, SiteRows],
        labels: Tensor,
        *,
        notes: tuple[str, ...] = (),
        folder: Path | None = None,
        buffer_bytes: int = BUFFER_BYTES,
        on_close: Callable[[], object] = lambda: None,
    ) -> None:
        self.sites = sites
        self.labels = labels
        self.notes = notes
        self.folder = folder
        self._buffer_bytes = buffer_bytes
        self._finalize = weakref.finalize(self, on_close)

    @classmethod
    def open(cls, folder: Path, *, buffer_bytes: int = BUFFER_BYTES) -> FeatureCache:
        """Open the complete cache that `cache_features` left in a folder.

        Raises:
            UsageError: The folder holds none, or one of another version, or files are damaged.
        """
        sites: dict[str, SiteRows] = {}
        try:
            header = json.loads((folder / _HEADER).read_text(encoding="utf-8"))
            if (header["format"], header["version"]) != (_FORMAT, _VERSION):
                raise ValueError(f"{header['format']} version {header['version']} is not known")
            for site in header["sites"]:
                sites[site["name"]] = SiteRows.open(
                    site["width"], np.dtype(site["dtype"]), folder / site["file"]
                )
            labels = SiteRows.open(1, np.dtype(np.int64), folder / _LABELS)
            for rows in (labels, *sites.values()):
                if len(rows) != header["rows"]:
                    raise ValueError(f"{rows.path} holds {len(rows)} rows, not {header['rows']}")
            with closing(labels):
                return cls(
                    sites,
                    labels.tensor().flatten(),
                    notes=tuple(header["notes"]),
                    folder=folder,
                    buffer_bytes=buffer_bytes,
                )
        except (OSError, KeyError, TypeError, ValueError) as error:
            for rows in sites.values():
                rows.close()
            raise UsageError(
                f"no readable feature cache in {folder}: {error}", "Make the features again."
            ) from error

    def write_header(self, folder: Path) -> None:
        """Complete a folder that holds the files of the sites: `open` accepts it from here on.

        Raises:
            AdaptifyError: The disk is full.
        """
        labels = SiteRows.create(1, np.dtype(np.int64), folder / _LABELS)
        labels.append(self.labels.unsqueeze(1).numpy())
        labels.close()
        sites = [
            {"name": name, "file": rows.path.name, "width": rows.width, "dtype": rows.dtype.str}
            for name, rows in self.sites.items()
            if rows.path is not None
        ]
        header = {"format": _FORMAT, "version": _VERSION, "rows": len(self), "sites": sites}
        write_text(folder / _HEADER, json.dumps(header | {"notes": self.notes}, indent=1))

    def __len__(self) -> int:
        return len(self.labels)

    def site(self, name: str) -> SiteRows:
        """The values of one site.

        Raises:
            UsageError: There is no such site.
        """
        if name not in self.sites:
            raise UsageError(
                f"no features of '{name}'{did_you_mean(name, self.sites)}",
                f"There are features of: {', '.join(self.sites)}.",
            )
        return self.sites[name]

    def minibatches(
        self, name: str, batch_size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of one site in random order: values (B, D) as float32, labels (B,).

        Short runs of rows are visited in random order, and rows are shuffled within a buffer of many
        runs: a full shuffle when the site fits in the buffer. Batches are evened out, so that none is
        much smaller than `batch_size`.
        """
        rows = self.site(name)
        step = max(1, _CHUNK_BYTES // rows.row_bytes)
        runs = max(1, self._buffer_bytes // (step * rows.row_bytes))
        buffer = np.empty((min(runs * step, len(rows)), rows.width), rows.dtype)
        values = torch.from_numpy(buffer)
        starts = torch.randperm(-(-len(rows) // step), generator=generator) * step
        for group in starts.split(runs):
            filled, positions = 0, []
            for first in group.sort().values.tolist():
                count = min(step, len(rows) - first)
                rows.read_into(first, buffer[filled : filled + count])
                positions.append(torch.arange(first, first + count))
                filled += count
            labels = self.labels[torch.cat(positions)]
            order = torch.randperm(filled, generator=generator)
            for picked in order.tensor_split(max(1, round(filled / batch_size))):
                yield values.index_select(0, picked).float(), labels.index_select(0, picked)

    def close(self) -> None:
        """Release memory and files; temporary files vanish."""
        for rows in self.sites.values():
            rows.close()
        self._finalize()

    def delete(self) -> None:
        """Close, and remove the files, and their folder when it is empty then."""
        for rows in self.sites.values():
            rows.delete()
        if self.folder is not None:
            discard_header(self.folder)
            with suppress(OSError):
                self.folder.rmdir()
        self._finalize()

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def discard_header(folder: Path) -> None:
    """Take away what makes a folder a complete cache."""
    for name in (_HEADER, _LABELS):
        (folder / name).unlink(missing_ok=True)
