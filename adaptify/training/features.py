"""One pass of a frozen network over the data, and what it said about every image.

Gates on a frozen backbone only ever see pooled features. They are kept as float16, 3.6 KB an image for
three gates of ResNet-101: in memory while they fit, in files beyond, written as they come. Memory is
bounded however many images there are.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adaptify.errors import AdaptifyError, ModelError, UsageError
from adaptify.parallel import group
from adaptify.progress import SILENT, Progress
from adaptify.training.feature_cache import BUFFER_BYTES, FeatureCache, discard_header
from adaptify.training.site_rows import SiteRows

__all__ = ["RAM_LIMIT", "FeatureCache", "cache_features"]

RAM_LIMIT = 512 << 20


def cache_features(
    forward: Callable[[Tensor], Mapping[str, Tensor]],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    folder: Path | None = None,
    ram_limit: int = RAM_LIMIT,
    buffer_bytes: int = BUFFER_BYTES,
    exact: Collection[str] = (),
    progress: Progress = SILENT,
    total: int | None = None,
) -> FeatureCache:
    """Run a frozen network over batches once and keep what `forward` returns for every image.

    Floating point values are kept as float16; a site turns to float32 when a value exceeds float16's
    range, and that is noted. Integers keep their type. For gates that see augmented images, chain the
    batches of several passes.

    Args:
        forward: Maps images (B, C, H, W) to values (B, D) of each site; anything that is wanted per
            image, like the logits, can be a site.
        batches: Images and labels (B,). If they come sorted by class, so do the features. Several processes
            take turns: of each, the batches that `parallel.group.Turns` takes. All get the whole.
        folder: Where the files go once the values exceed `ram_limit`. A complete cache stays there
            until `FeatureCache.delete`, and `FeatureCache.open` reads it again. `None` is a new folder
            among the system's temporary files, which vanishes with the cache.
        ram_limit: Bytes of values kept in memory.
        buffer_bytes: Memory for shuffling, once per epoch of training.
        exact: Names of the sites to keep as float32.
        progress: Told of every image.
        total: Number of images, if known, for `progress`.

    Raises:
        UsageError: There are no batches, or shapes do not fit.
        ModelError: A value is infinite or not a number.
        AdaptifyError: The disk is full. Whatever was written is removed, as after any failure.
    """
    writer = _Writer(folder, ram_limit, frozenset(exact))
    try:
        with progress.stage("run the network once", total) as stage:
            for values, labels in group.in_turns(_run(forward, batches)):
                writer.add(values, labels)
                stage.advance(len(labels))
        return writer.finish(buffer_bytes)
    except BaseException:
        writer.discard()
        raise


def _run(
    forward: Callable[[Tensor], Mapping[str, Tensor]], batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    for images, labels in batches:
        with torch.inference_mode():
            values = {name: value.cpu() for name, value in forward(images).items()}
        yield values, labels.cpu()


class _Writer:
    """Collects the values of every site, in memory first and in files from the limit on."""

    def __init__(self, folder: Path | None, ram_limit: int, exact: frozenset[str]) -> None:
        self._wanted_folder = folder
        self._ram_limit = ram_limit
        self._exact = exact
        self._folder: Path | None = None
        self._sites: dict[str, SiteRows] = {}
        # One growing buffer: many small tensors, alive between large ones that come and go, would
        # fragment the heap.
        self._labels = SiteRows.create(1, np.dtype(np.int64))
        self._notes: list[str] = []
        self._files = 0
        self._on_close: Callable[[], object] = lambda: None

    def add(self, values: Mapping[str, Tensor], labels: Tensor) -> None:
        if len(self._labels) and values.keys() != self._sites.keys():
            raise UsageError(
                f"features of {sorted(values)} follow features of {sorted(self._sites)}",
                "Add the features of the same sites for every batch.",
            )
        for name, value in values.items():
            if value.dim() != 2 or len(value) != len(labels):
                raise UsageError(
                    f"features of '{name}' have shape {tuple(value.shape)} for {len(labels)} labels",
                    "Pool them to (N, D).",
                )
            self._append(name, value.detach().cpu())
        self._labels.append(labels.unsqueeze(1).cpu().numpy())
        if self._folder is None and sum(rows.nbytes for rows in self._sites.values()) > self._ram_limit:
            self._spill()

    def finish(self, buffer_bytes: int) -> FeatureCache:
        if not len(self._labels):
            raise UsageError("no images to compute features of", "Check the data set and its split.")
        cache = FeatureCache(
            self._sites,
            self._labels.tensor().flatten(),
            notes=tuple(self._notes),
            folder=self._folder,
            buffer_bytes=buffer_bytes,
            on_close=self._on_close,
        )
        if self._folder is not None:
            cache.write_header(self._folder)
        return cache

    def discard(self) -> None:
        for rows in self._sites.values():
            rows.delete()
        if self._folder is not None:
            discard_header(self._folder)
            with suppress(OSError):
                self._folder.rmdir()

    def _append(self, name: str, value: Tensor) -> None:
        stored = value
        if value.is_floating_point():
            stored = value.float() if name in self._exact else value.half()
        if not torch.isfinite(stored).all():
            if not torch.isfinite(value).all():
                image = len(self._labels) + int((~torch.isfinite(value)).any(dim=1).nonzero()[0])
                raise ModelError(
                    f"the network gives NaN or infinity at '{name}' for image {image}",
                    "Check the checkpoint for NaN, and the mean and std of the input.",
                )
            stored = value.float()
        array = stored.numpy()
        if name not in self._sites:
            self._sites[name] = SiteRows.create(array.shape[1], array.dtype, self._new_file())
        rows = self._sites[name]
        if rows.width != array.shape[1]:
            raise UsageError(
                f"features of '{name}' had width {rows.width} and now have {array.shape[1]}",
                "Give all images the same size.",
            )
        if array.dtype == np.float32 and rows.dtype == np.float16:
            self._sites[name] = rows.copy_to(self._new_file(), array.dtype)
            rows.delete()
            self._notes.append(f"features of '{name}' exceed the range of float16 and are kept as float32")
        self._sites[name].append(array)

    def _spill(self) -> None:
        """Move from memory to files."""
        try:
            if self._wanted_folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="adaptify-features-"))
                self._on_close = partial(shutil.rmtree, self._folder, ignore_errors=True)
            else:
                self._wanted_folder.mkdir(parents=True, exist_ok=True)
                self._folder = self._wanted_folder
                discard_header(self._folder)
        except OSError as error:
            raise AdaptifyError(
                f"cannot make a folder for features: {error}", "Choose another folder."
            ) from error
        for name, rows in self._sites.items():
            self._sites[name] = rows.copy_to(self._new_file(), rows.dtype)
            rows.delete()

    def _new_file(self) -> Path | None:
        self._files += 1
        return None if self._folder is None else self._folder / f"site{self._files:03d}.bin"
