"""Synthetic images that can be learned, for trial runs without data."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from adaptify.data.augment import Augmentation
from adaptify.data.source import MEMORY_LIMIT, ArraySource, Opened, Options
from adaptify.errors import UsageError

CLASSES = 10
PATTERN = 4  # height and width of a class's pattern before it is scaled up


def open_fake(argument: str, options: Options) -> Opened:
    """Make `N` training images and N // 5 test images: `fake:N`, or `fake:N:CLASSES`.

    Every class has a pattern of coloured patches; an image is its class's pattern under noise. The
    images are the same every time.

    Raises:
        UsageError: The numbers are missing, too small or too large.
    """
    images, classes = _numbers(argument)
    total = images + max(images // 5, 2)
    channels, height, width = options.input.shape
    if (total + classes) * channels * height * width > MEMORY_LIMIT:
        raise UsageError(
            f"fake:{argument} would need more than {MEMORY_LIMIT >> 30} GiB of memory at {height}x{width}",
            "fake is for trial runs: use fewer images or classes.",
        )
    labels = torch.arange(total) % classes
    random = np.random.RandomState(0)  # its stream is the same in all versions of numpy
    patterns = random.uniform(48, 208, (classes, channels, PATTERN, PATTERN)).astype(np.float32)
    patches = F.interpolate(torch.from_numpy(patterns), (height, width), mode="nearest").to(torch.uint8)
    noise = random.randint(-48, 48, (total, channels, height, width), dtype=np.int16)
    pixels = torch.from_numpy(noise).add_(patches[labels]).to(torch.uint8)
    sources = [
        ArraySource(pixels[part], labels[part], options.input, Augmentation(flip=False))
        for part in (slice(None, images), slice(images, None))
    ]
    names = tuple(f"class {i}" for i in range(classes))
    return Opened(names, sources[0], sources[1], ("the images are synthetic",))


def _numbers(argument: str) -> tuple[int, int]:
    parts = argument.split(":")
    if not 1 <= len(parts) <= 2 or not all(part.isdecimal() for part in parts):
        raise UsageError(
            f"fake:{argument} does not say how many images",
            "Write fake:N or fake:N:CLASSES, for example fake:64.",
        )
    images, classes = int(parts[0]), int(parts[1]) if len(parts) == 2 else CLASSES
    if images < 2 or classes < 2:
        raise UsageError(f"fake:{argument} is too small", "Use at least 2 images and 2 classes.")
    return images, classes
