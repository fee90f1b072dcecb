"""What an opener hands on: labelled images that have not been cut into splits yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from adaptify.data.augment import Augmentation
from adaptify.data.split import MemorySplit, Report, Split
from adaptify.input_spec import InputSpec
from adaptify.progress import SILENT, Progress

MEMORY_LIMIT = 1 << 30  # bytes of uint8 pixels up to which a data set is kept in memory


@dataclass(frozen=True)
class Options:
    """How images are to be read, the same for every kind of data set.

    Attributes:
        input: Shape and normalisation of the batches.
        workers: Threads that decode, and processes that read a large data set; 0 reads in the caller.
        skip_corrupt: Leave unreadable images out instead of refusing the data set.
        progress: Where the number of images read is reported to.
    """

    input: InputSpec
    workers: int
    skip_corrupt: bool
    progress: Progress = SILENT


class Source(Protocol):
    """Labelled images from one place."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""

    def take(self, rows: Tensor) -> Split:
        """The images at positions `rows`, (K,) int64, as a split."""


@dataclass(frozen=True)
class Opened:
    """A data set as its folder or file holds it.

    Attributes:
        classes: Name of every class.
        train: The training images, or all images where there is no part for testing.
        test: The images kept for testing, if the data set has such a part.
        notes: What a reader of a report should know.
    """

    classes: tuple[str, ...]
    train: Source
    test: Source | None
    notes: tuple[str, ...] = ()


Opener = Callable[[str, Options], Opened]
"""Opens the data set that the text after the name and colon stands for."""


@dataclass(frozen=True)
class ArraySource:
    """Images that are in memory already.

    Attributes:
        pixels: (N, 1 or 3, h, w) uint8.
        labels: (N,) int64.
        input: Shape and normalisation of the batches.
        augmentation: How batches are augmented.
    """

    pixels: Tensor
    labels: Tensor
    input: InputSpec
    augmentation: Augmentation

    def take(self, rows: Tensor) -> Split:
        """The images at positions `rows`, (K,) int64, with the channels of the input."""
        chosen = convert_channels(self.pixels[rows], self.input.channels)

        def load(report: Report) -> Tensor:
            report(len(chosen))
            return chosen

        return MemorySplit(load, self.labels[rows], rows, self.input, self.augmentation)


def convert_channels(pixels: Tensor, channels: int) -> Tensor:
    """Convert (N, 1 or 3, h, w) uint8 pixels from grey to RGB or back; exactly as Pillow does."""
    if pixels.shape[1] == channels:
        return pixels
    if channels == 3:
        return pixels.expand(-1, 3, -1, -1).contiguous()
    # ITU-R 601 luma in 16-bit fixed point; the products reach 2^24, so one image plane at a time in int32.
    grey = torch.full(pixels[:, :1].shape, 1 << 15, dtype=torch.int32)
    for plane, weight in enumerate((19595, 38470, 7471)):
        grey.add_(pixels[:, plane : plane + 1].to(torch.int32), alpha=weight)
    return (grey >> 16).to(torch.uint8)
