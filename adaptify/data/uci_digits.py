"""The UCI handwritten digits: 1,797 grey images of 8x8 pixels in 10 classes, part of the package.

Attribution and licence: `digits/ATTRIBUTION.md` beside this file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from adaptify.data.augment import Augmentation
from adaptify.data.source import ArraySource, Opened, Options
from adaptify.errors import UsageError

ARCHIVE = Path(__file__).parent / "digits" / "digits.npz"


def open_digits(argument: str, options: Options) -> Opened:
    """Open the embedded digits.

    Raises:
        UsageError: Something follows the name.
    """
    if argument:
        raise UsageError(f"digits takes nothing after its name, not {argument!r}", "Write: digits")
    with np.load(ARCHIVE) as arrays:
        counts, labels = arrays["images"], arrays["labels"]
    # A pixel counts the dark points of a 4x4 cell, 0 to 16.
    pixels = ((counts.astype(np.uint16) * 255 + 8) // 16).astype(np.uint8)
    source = ArraySource(
        torch.from_numpy(pixels).unsqueeze(1),
        torch.from_numpy(labels.astype(np.int64)),
        options.input,
        Augmentation(flip=False),
    )
    return Opened(classes=tuple("0123456789"), train=source, test=None)
