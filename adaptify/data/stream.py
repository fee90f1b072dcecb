"""Reading a data set that is too large for memory: batches decoded by worker processes as they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adaptify.data.decode import ImageFiles, image_array, open_image, read_image, vanished
from adaptify.data.split import Part, Report, StoredSplit, no_report
from adaptify.errors import AdaptifyError
from adaptify.input_spec import InputSpec

Transform = Callable[[Image.Image], Image.Image]


class StreamSplit(StoredSplit):
    """A split that is read from image files, again for every pass.

    Augmentation is torchvision's `RandomResizedCrop` and `RandomHorizontalFlip`.

    Args:
        files: N image files.
        labels: (N,) int64.
        indices: (N,) int64, positions in the folder the images come from.
        input: Shape and normalisation of the batches.
        workers: Processes that decode; 0 decodes in the caller.
    """

    def __init__(
        self, files: ImageFiles, labels: Tensor, indices: Tensor, input: InputSpec, workers: int
    ) -> None:
        super().__init__(labels, indices, input)
        self._files = files
        self._workers = workers

    def image(self, i: int) -> Tensor:
        """Image `i` at the input's size, (C, H, W) uint8.

        Raises:
            UsageError: The image cannot be read.
        """
        return torch.from_numpy(read_image(self._files.path(i), self.input).copy())

    def identities(self) -> list[bytes]:
        """Where each file is, links followed: reading all files would take as long as using them."""
        return [os.fsencode(os.path.realpath(self._files.path(i))) for i in range(len(self))]

    def contents(self) -> list[bytes]:
        """Name and size of each file."""
        try:
            sizes = [os.stat(self._files.path(i)).st_size for i in range(len(self))]
        except FileNotFoundError as error:
            raise vanished(error.filename) from error
        return [b"%b %d" % pair for pair in zip(self._files.names, sizes, strict=True)]

    def prepare(self, report: Report = no_report) -> None:
        """Nothing is kept, so nothing is loaded."""
        report(len(self))

    def _pixels(
        self, parts: Sequence[Part], augment: bool, generator: torch.Generator, device: torch.device
    ) -> Iterator[Tensor]:
        # Seeds are drawn for the whole batch, so that an image has the same one whatever is taken.
        drawn = ((part, _seeds(len(part.batch), generator)[part.own]) for part in parts)
        loader = DataLoader(
            _Reader(self._files, self.input, _random_crop(self.input) if augment else None),
            batch_size=None,
            sampler=((part.rows.tolist(), seeds) for part, seeds in drawn if seeds),
            num_workers=min(self._workers, len(parts)),
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else the loader draws from torch's global random state
        )
        for batch in loader:
            if isinstance(batch, AdaptifyError):
                raise batch
            yield batch


class _Reader(Dataset[Tensor | AdaptifyError]):
    """Decodes batches, in a worker process."""

    def __init__(self, files: ImageFiles, input: InputSpec, transform: Transform | None) -> None:
        self._files = files
        self._input = input
        self._transform = transform

    def __getitem__(self, item: tuple[list[int], list[int]]) -> Tensor | AdaptifyError:
        """Read the images of one batch.

        Args:
            item: Positions of the images, and a seed for the augmentation of each.

        Returns:
            Pixels (B, C, H, W) uint8, or the error: raised here it would arrive with a traceback as its text.
        """
        pixels = np.empty((len(item[0]), *self._input.shape), dtype=np.uint8)
        try:
            for row, (i, seed) in enumerate(zip(*item, strict=True)):
                pixels[row] = self._read(self._files.path(i), seed)
        except AdaptifyError as error:
            return error
        return torch.from_numpy(pixels)

    def _read(self, path: str, seed: int) -> npt.NDArray[np.uint8]:
        if self._transform is None:
            return read_image(path, self._input)
        image = open_image(path, self._input)
        # torchvision draws from the global generator; borrow it for this image and put it back.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return image_array(self._transform(image))


def _random_crop(input: InputSpec) -> Transform:
    from torchvision.transforms import v2  # a second to import, and only needed here

    crop = v2.RandomResizedCrop((input.height, input.width))
    transform: Transform = v2.Compose([crop, v2.RandomHorizontalFlip()])
    return transform


def _seeds(count: int, generator: torch.Generator) -> list[int]:
    return torch.randint(2**62, (count,), generator=generator).tolist()
