"""One part of a data set: batches of normalised images with their labels.

Notation: N images in the split, B in a batch, (C, H, W) the shape of an input image, (h, w) the size at
which images are stored.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adaptify.data.augment import Augmentation
from adaptify.data.resize import fit_batch
from adaptify.errors import UsageError
from adaptify.input_spec import InputSpec

Report = Callable[[int], None]
"""Called with the number of images decoded since the last call."""

Take = Callable[[int, int], slice]
"""Which rows of a batch are wanted, by its number and its size; where none are, the batch is left out."""


def everything(index: int, rows: int) -> slice:
    """Take all rows of all batches."""
    return slice(0, rows)


def no_report(count: int) -> None:
    """Tell nobody."""


class Part(NamedTuple):
    """What is taken of a batch.

    Attributes:
        batch: (B,) int64, positions in the split.
        own: Those that are taken.
    """

    batch: Tensor
    own: slice

    @property
    def rows(self) -> Tensor:
        """The positions that are taken."""
        return self.batch[self.own]


class Split(ABC):
    """Labelled images that can be read in batches, in order or shuffled, as they are or augmented.

    Args:
        labels: (N,) int64.
        indices: (N,) int64, positions in the folder or file the images come from.
        input: Shape and normalisation of the batches.

    Attributes:
        labels: (N,) int64, in the order of unshuffled batches.
        indices: (N,) int64, positions in the folder or file the images come from, for provenance.
    """

    def __init__(self, labels: Tensor, indices: Tensor, input: InputSpec) -> None:
        self.labels = labels
        self.indices = indices
        self.input = input

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def image(self, i: int) -> Tensor:
        """Image `i` as it is stored, (C, h, w) uint8.

        Raises:
            UsageError: The image cannot be read.
        """

    @abstractmethod
    def identities(self) -> list[bytes]:
        """What tells images apart, one for each, in the order of the split: equal ones, equal images."""

    def contents(self) -> list[bytes] | None:
        """What shows that images are still those that they were, one for each, in the order of the split.

        None where that takes reading all images.

        Raises:
            OutsideError: An image is gone.
        """
        return None

    @abstractmethod
    def prepare(self, report: Report = no_report) -> None:
        """Load now what is kept in memory, so that a bad image is found before the work.

        Raises:
            UsageError: An image cannot be read.
        """

    @abstractmethod
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
        """Iterate once over all images.

        The order and the augmentation depend on `seed` alone: not on the device, the number of workers, or
        torch's global random state, which is left untouched.

        Args:
            batch_size: Images in a batch (B); the last batch may be smaller.
            augment: Change the images at random, in the way that suits the data set.
            shuffle: In random order instead of the stored one.
            seed: Seed of the order and of the augmentation.
            device: Where the batches are wanted.
            drop_last: Leave a smaller last batch out.
            take: What of each batch is wanted. The order, and how an image is augmented, are those of whole
                batches, whatever is taken of them.

        Yields:
            Images (B, C, H, W) float32, normalised, and labels (B,) int64.

        Raises:
            UsageError: `batch_size` is not positive, or an image cannot be read.
        """

    def _parts(
        self, batch_size: int, shuffle: bool, drop_last: bool, generator: torch.Generator, take: Take
    ) -> list[Part]:
        """What is taken of each batch, in the order of the batches.

        Raises:
            UsageError: `batch_size` is not positive.
        """
        if batch_size < 1:
            raise UsageError(f"a batch of {batch_size} images is not possible", "Choose at least 1.")
        order = torch.randperm(len(self), generator=generator) if shuffle else torch.arange(len(self))
        batches = [
            part for part in torch.split(order, batch_size) if len(part) == batch_size or not drop_last
        ]
        return [Part(rows, take(index, len(rows))) for index, rows in enumerate(batches)]


class StoredSplit(Split):
    """A split of images that are stored as pixels (uint8), and normalised batch by batch."""

    @abstractmethod
    def _pixels(
        self, parts: Sequence[Part], augment: bool, generator: torch.Generator, device: torch.device
    ) -> Iterator[Tensor]:
        """Yield the pixels (B, C, h, w) uint8 of each part that has any rows, on any device."""

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
        """Iterate once over all images; see `Split.batches`. Pixels travel to `device` as uint8."""
        device = torch.device(device)
        generator = torch.Generator().manual_seed(seed)
        parts = self._parts(batch_size, shuffle, drop_last, generator, take)
        taken = [part.rows for part in parts if len(part.rows)]
        # Pixel values are in [0, 255]: (x / 255 - mean) / std = (x - 255 mean) / (255 std).
        mean = 255 * torch.tensor(self.input.mean, device=device).view(1, -1, 1, 1)
        scale = 1 / (255 * torch.tensor(self.input.std, device=device).view(1, -1, 1, 1))
        for chosen, pixels in zip(taken, self._pixels(parts, augment, generator, device), strict=False):
            images = pixels.to(device, non_blocking=True).to(torch.float32).sub_(mean).mul_(scale)
            if images.shape[2:] != (self.input.height, self.input.width):
                images = fit_batch(images, self.input)
            yield images, self.labels[chosen].to(device)


class MemorySplit(StoredSplit):
    """A split whose pixels are kept in memory as uint8, after they were loaded once.

    Pixels of another size than the input's are brought to it batch by batch.

    Args:
        load: Makes the pixels, (N, C, h, w) uint8; called once, when they are first needed.
        labels: (N,) int64.
        indices: (N,) int64, positions in the folder or file the images come from.
        input: Shape and normalisation of the batches.
        augmentation: How batches are augmented.
    """

    def __init__(
        self,
        load: Callable[[Report], Tensor],
        labels: Tensor,
        indices: Tensor,
        input: InputSpec,
        augmentation: Augmentation,
    ) -> None:
        super().__init__(labels, indices, input)
        self._load = load
        self._loaded: Tensor | None = None
        self._augmentation = augmentation

    def prepare(self, report: Report = no_report) -> None:
        """Load the pixels, unless that is done."""
        if self._loaded is None:
            self._loaded = self._load(report)

    @property
    def pixels(self) -> Tensor:
        """All images, (N, C, h, w) uint8."""
        self.prepare()
        assert self._loaded is not None
        return self._loaded

    def image(self, i: int) -> Tensor:
        """Image `i` as it is stored, (C, h, w) uint8."""
        return self.pixels[i].clone()

    def contents(self) -> list[bytes] | None:
        """A digest of the pixels of each image, once they are loaded."""
        return None if self._loaded is None else self.identities()

    def identities(self) -> list[bytes]:
        """A digest of the pixels of each image."""
        return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in self.pixels.numpy()]

    def _pixels(
        self, parts: Sequence[Part], augment: bool, generator: torch.Generator, device: torch.device
    ) -> Iterator[Tensor]:
        stored = self.pixels
        for part in parts:
            batch = stored.index_select(0, part.rows).to(device)
            if augment:
                batch = self._augmentation(batch, generator, part.own, len(part.batch))
            if len(batch):
                yield batch
