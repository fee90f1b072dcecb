"""A data set that the user brings: a `DataLoader`, a `Dataset`, or batches of images and labels."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from adaptify.data.split import Report, Split, Take, everything, no_report
from adaptify.errors import UsageError
from adaptify.input_spec import InputSpec

Batches: TypeAlias = "DataLoader[Any] | Dataset[Any] | Iterable[tuple[Tensor, Tensor]]"
"""Images (B, C, H, W), floating-point as the network takes them, and labels (B,), class by number."""

_READ = 256  # images in a batch that is only looked at


class LoaderSource:
    """The images of a loader, in the order of its data set: they can be read again, in any order.

    Of a `DataLoader`, everything is used but its order and the size of its batches: data set, transforms,
    what puts images together, workers. Its sampler says which images there are. What has no positions (an
    `IterableDataset`, a list of batches) is read once, and kept in memory.

    Args:
        given: What the user brought.

    Attributes:
        loader: Reads the images.
        rows: (N,) int64, positions in its data set.
        labels: (N,) int64.
    """

    def __init__(self, given: Batches) -> None:
        """Look at the labels; images are read for them only where the data set does not tell them.

        Raises:
            UsageError: It holds no images, or no classes by number.
        """
        self.loader = _loader(given)
        self.rows = _rows(self.loader)
        if not len(self.rows):
            raise UsageError("a loader holds no images", "Give one that does; was it read to its end before?")
        known = _known_labels(self.loader.dataset)
        self.labels = known[self.rows] if known is not None else self._read_labels()

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, if the data set tells them."""
        dataset = self.loader.dataset
        while isinstance(dataset, Subset):
            dataset = dataset.dataset
        names = getattr(dataset, "classes", None)
        told = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
        return tuple(names) if told and names else None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the first image."""
        images, _ = next(self.read([self.rows[:1]], seed=0))
        channels, height, width = images.shape[1:]
        return channels, height, width

    def take(self, rows: Tensor, input: InputSpec) -> Split:
        """The images at `rows`, (K,) int64 positions in `labels`, as a split."""
        return LoaderSplit(self, self.rows[rows], self.labels[rows], input)

    def read(self, batches: Sequence[Tensor], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, C, H, W) and labels (B,) at the positions of each batch in the data set.

        Transforms that draw from torch's random numbers draw the same ones for the same seed, whatever was
        drawn elsewhere.

        Raises:
            UsageError: The loader yields something else.
        """
        generator = torch.Generator().manual_seed(seed)
        given = self.loader
        reader: DataLoader[Any] = DataLoader(
            given.dataset,
            batch_sampler=[batch.tolist() for batch in batches],
            collate_fn=given.collate_fn,
            num_workers=min(given.num_workers, len(batches)),
            pin_memory=given.pin_memory,
            worker_init_fn=given.worker_init_fn,
            multiprocessing_context=given.multiprocessing_context if given.num_workers else None,
            timeout=given.timeout,
            generator=generator,
        )
        batch_iterator = iter(reader)
        state = generator.get_state()
        for _ in batches:
            # Without workers, transforms draw from the global generator: borrow it, and put it back.
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(state)
                batch = next(batch_iterator)
                state = torch.get_rng_state()
            yield _checked(batch)

    def _read_labels(self) -> Tensor:
        return torch.cat([labels for _, labels in self.read(self.rows.split(_READ), seed=0)])


class LoaderSplit(Split):
    """Images that a loader reads.

    Args:
        source: What reads them.
        indices: (N,) int64, positions in its data set.
        labels: (N,) int64.
        input: Shape of the images.
    """

    def __init__(self, source: LoaderSource, indices: Tensor, labels: Tensor, input: InputSpec) -> None:
        super().__init__(labels, indices, input)
        self._source = source
        self._identities: list[bytes] | None = None

    def image(self, i: int) -> Tensor:
        """Image `i` as a picture, (1 or 3, H, W) uint8: its values from the least to the largest."""
        images, _ = next(self._source.read([self.indices[i : i + 1]], seed=0))
        image = images[0] if images.shape[1] in (1, 3) else images[0, :1]
        low, high = image.min(), image.max()
        return ((image - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)

    def identities(self) -> list[bytes]:
        """A digest of the values of each image."""
        if self._identities is None:
            self._identities = [
                hashlib.blake2b(image.tobytes(), digest_size=16).digest()
                for images, _ in self._source.read(self.indices.split(_READ), seed=0)
                for image in images.numpy()
            ]
        return self._identities

    def prepare(self, report: Report = no_report) -> None:
        """Nothing is kept, so nothing is loaded."""
        report(len(self))

    def batches(
        self,
        batch_size: int,
        *,
        augment: bool = False,
        shuffle: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        drop_last: bool = False,
        take: Take = everything,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate once over all images; see `Split.batches`. They are augmented as the data set does it.

        What its transforms draw for an image depends on what is taken.
        """
        parts = self._parts(batch_size, shuffle, drop_last, torch.Generator().manual_seed(seed), take)
        rows = [part.rows for part in parts if len(part.rows)]
        first = next((part.own.start for part in parts if len(part.rows)), 0)
        read = self._source.read([self.indices[chosen] for chosen in rows], seed + first)
        for chosen, (images, labels) in zip(rows, read, strict=True):
            if tuple(images.shape[1:]) != self.input.shape:
                raise UsageError(
                    f"an image is {tuple(images.shape[1:])}, and not {self.input.shape} (C, H, W)",
                    "Give loaders whose images all have the size that the network was traced for.",
                )
            if not torch.equal(labels, self.labels[chosen]):
                raise UsageError(
                    "the labels of a loader are not the same in every pass over its data set",
                    "Give a data set that returns the same label for an index each time.",
                )
            yield images.to(device, non_blocking=True), labels.to(device)


def _loader(given: Batches) -> DataLoader[Any]:
    if isinstance(given, DataLoader):
        if not isinstance(given.dataset, IterableDataset) and given.batch_sampler is not None:
            return given
        return _in_memory(given)
    if isinstance(given, Dataset) and not isinstance(given, IterableDataset):
        return DataLoader(given, batch_size=_READ)
    if isinstance(given, Iterable):
        return _in_memory(given)
    raise UsageError(
        f"{type(given).__name__} is no data",
        "Give a DataLoader, a Dataset, or an iterable of batches (images, labels).",
    )


def _in_memory(batches: Iterable[Any]) -> DataLoader[Any]:
    pairs = [_checked(batch) for batch in batches]
    if not pairs:
        raise UsageError("a loader holds no images", "Give one that does; was it read to its end before?")
    images, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return DataLoader(TensorDataset(images, labels), batch_size=_READ)


def _rows(loader: DataLoader[Any]) -> Tensor:
    """Positions of the images of a loader in its data set, ascending."""
    batches = loader.batch_sampler
    sampler = batches.sampler if type(batches) is BatchSampler else None
    whole = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler)
        and not sampler.replacement
        and sampler.num_samples == _count(loader)
    )
    if whole:
        return torch.arange(_count(loader))
    drawn: Iterable[int] = sampler if sampler is not None else itertools.chain.from_iterable(batches or ())
    return torch.tensor(sorted(drawn), dtype=torch.int64)


def _count(loader: DataLoader[Any]) -> int:
    return len(loader.dataset)  # type: ignore[arg-type]


def _known_labels(dataset: Dataset[Any]) -> Tensor | None:
    """The labels of a data set that tells them without reading its images; (N,) int64."""
    if isinstance(dataset, Subset):
        inner = _known_labels(dataset.dataset)
        return inner[torch.as_tensor(dataset.indices)] if inner is not None else None
    found: Any = None
    if isinstance(dataset, TensorDataset):
        found = dataset.tensors[-1]
    elif getattr(dataset, "target_transform", None) is None:
        found = getattr(dataset, "targets", None)  # as torchvision has it; checked when images are read
    if not isinstance(found, (Tensor, list)):
        return None
    labels = torch.as_tensor(found)
    return labels.long() if labels.dim() == 1 and not labels.is_floating_point() else None


def _checked(batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise UsageError(
            f"a loader yields {type(batch).__name__}, not images and labels",
            "Let it yield pairs: images (B, C, H, W) and labels (B,); a collate_fn can take them out.",
        )
    images, labels = batch
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
        what = (
            f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        )
        raise UsageError(
            f"the images of a loader are {what}",
            "Let it yield floating-point tensors (B, C, H, W), normalised as the network takes them.",
        )
    classes = isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point()
    if not classes or len(labels) != len(images):
        what = (
            f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        )
        raise UsageError(
            f"the labels of a loader are {what} for {len(images)} images",
            "Let it yield the number of the class of each image: integers (B,).",
        )
    return images.float(), labels.long()
