"""From image files to uint8 pixels of the input's channels and size."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from adaptify.bounds import brief
from adaptify.data.resize import fit_image, scaled_size
from adaptify.data.split import Report
from adaptify.errors import OutsideError, UsageError
from adaptify.input_spec import InputSpec
from adaptify.text import whole

SHOWN = 3  # images that are named where many cannot be read

_LEAVE_OUT = "Replace or remove the file, or leave such images out with --skip-corrupt."

CHUNK = 64  # images that a thread decodes before it takes the next ones

MODES = {1: "L", 3: "RGB"}  # Pillow's mode for a number of channels

# What is taken for an image, whatever a file is called. Pillow knows more formats, among them some that are
# programs: it hands PostScript to an interpreter.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

MOST_PIXELS = 1 << 26
"""Pixels of an image file; a few KB can unpack to any number of them."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files under one folder.

    Attributes:
        root: The folder.
        names: (N,) fixed-length byte strings, paths below `root`. One array instead of a million Python
            strings, because reader processes would each end up with a copy of those.
    """

    root: Path
    names: npt.NDArray[np.bytes_]

    def __len__(self) -> int:
        return len(self.names)

    def path(self, i: int) -> str:
        """Path of file `i`."""
        return os.path.join(self.root, os.fsdecode(self.names[i]))

    def take(self, rows: Tensor) -> ImageFiles:
        """The files at positions `rows`, (K,) int64."""
        return ImageFiles(self.root, self.names[rows.numpy()])


def open_image(path: str, input: InputSpec) -> Image.Image:
    """Decode an image file at its own size, with the input's channels; an alpha channel is dropped.

    Raises:
        UsageError: The file cannot be read, is truncated, or is no image.
        OutsideError: It has vanished.
    """
    with _naming(path), open(path, "rb") as file:
        return _convert(_opened(file), MODES[input.channels])


def read_image(path: str, input: InputSpec) -> npt.NDArray[np.uint8]:
    """Decode an image file, scaled and cropped to the input's size.

    Returns:
        (C, H, W) uint8.

    Raises:
        UsageError: The file cannot be read, is truncated, or is no image.
        OutsideError: It has vanished.
    """
    with _naming(path), open(path, "rb") as file:
        image = _opened(file)
        height, width = scaled_size(image.height, image.width, input)
        # A JPEG can be decoded at a half, a quarter or an eighth of its size, which is far cheaper. What is
        # then left to the antialiasing filter, a factor of 2 or more, hides the coarser decoding.
        image.draft(image.mode, (2 * width, 2 * height))
        return image_array(fit_image(_convert(image, MODES[input.channels]), (height, width), input))


def vanished(path: str) -> OutsideError:
    """What to say of a file that was there when the folder was listed."""
    return OutsideError(f"the image {path} has vanished", "Bring it back, or start anew without it.")


def image_array(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Pixels of an RGB or grey image, (C, H, W) uint8."""
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def decode(files: ImageFiles, input: InputSpec, workers: int, report: Report) -> Tensor:
    """Decode all files into one tensor, with `workers` threads.

    Returns:
        (N, C, H, W) uint8.

    Raises:
        UsageError: Images cannot be read; they are counted, and the first ones named.
        OutsideError: A file has vanished.
    """
    pixels = np.empty((len(files), *input.shape), dtype=np.uint8)
    bad: dict[int, UsageError] = {}

    def decode_one(i: int) -> None:
        try:
            pixels[i] = read_image(files.path(i), input)
        except UsageError as error:
            bad[i] = error

    _for_each(decode_one, len(files), workers, report)
    if bad:
        raise _refusal([bad[i] for i in sorted(bad)], len(files))
    return torch.from_numpy(pixels)


def _refusal(errors: Sequence[UsageError], count: int) -> UsageError:
    """One error for all images that cannot be read."""
    if len(errors) == 1:
        return errors[0]
    shown = [error.message for error in errors[:SHOWN]]
    more = [f"and {whole(len(errors) - SHOWN)} more"] if len(errors) > SHOWN else []
    return UsageError(
        "\n".join([f"cannot read {whole(len(errors))} of {whole(count)} images", *shown, *more]), _LEAVE_OUT
    )


def readable(files: ImageFiles, workers: int, report: Report) -> Tensor:
    """Decode every file, as small as its format allows, to find out which can be read.

    Returns:
        (N,) bool.

    Raises:
        OutsideError: A file has vanished.
    """
    good = torch.ones(len(files), dtype=torch.bool)

    def try_one(i: int) -> None:
        try:
            with _naming(files.path(i)), open(files.path(i), "rb") as file:
                image = _opened(file)
                image.draft(image.mode, (1, 1))
                _convert(image, "RGB")
        except UsageError:
            good[i] = False

    _for_each(try_one, len(files), workers, report)
    return good


def _for_each(work: Callable[[int], None], count: int, workers: int, report: Report) -> None:
    def chunk(start: int) -> int:
        stop = min(start + CHUNK, count)
        for i in range(start, stop):
            work(i)
        return stop - start

    starts = range(0, count, CHUNK)
    with warnings.catch_warnings():
        # What Pillow can read in spite of all is read; what it cannot is told of by name.
        warnings.simplefilter("ignore")
        if workers < 2:
            _drain(map(chunk, starts), report)
            return
        Image.init()  # Pillow loads its readers when first needed, which threads must not do at the same time
        with ThreadPoolExecutor(workers) as pool:
            _drain(pool.map(chunk, starts), report)


def _drain(sizes: Iterable[int], report: Report) -> None:
    for size in sizes:
        report(size)


def _opened(file: IO[bytes]) -> Image.Image:
    """Open an image without decoding it.

    Raises:
        ValueError: It has more than `MOST_PIXELS`.
    """
    image = Image.open(file, formats=FORMATS)
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"its {image.width}x{image.height} pixels are more than {MOST_PIXELS:,}")
    return image


def _convert(image: Image.Image, mode: str) -> Image.Image:
    image.load()
    if image.mode == mode:
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to 255 instead of scaling
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are floating point numbers, whose range is not known")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Turn whatever goes wrong with a file into one message that names it."""
    try:
        yield
    except FileNotFoundError as error:  # it was there when the folder was listed
        raise vanished(path) from error
    except Exception as error:  # Pillow's readers raise SyntaxError, struct.error, zlib.error, ...
        raise UsageError(f"cannot read the image {path}: {_reason(error)}", _LEAVE_OUT) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return brief(error)
