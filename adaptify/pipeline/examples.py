"""Example images of a report, small enough to stand in its page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from adaptify.data import Split

_EXAMPLES = 12
_SIDE = 96  # px, at most


def examples_part(
    images: Split,
    classes: Sequence[str],
    predictions: Tensor,
    easy: Tensor,
    hard: Tensor,
    details: Callable[[int], dict[str, Any]],
) -> dict[str, Any]:
    """Return the `Examples` of a report: the first dozen of two orders of the images.

    Args:
        images: The images, with their labels.
        classes: Names of the classes.
        predictions: (N,) int64.
        easy: (N,) int64, the images in the order in which they are easy.
        hard: (N,) int64, the images in the order in which they are hard.
        details: What else is to be told of an image, by its row.
    """

    return {
        name: [example_part(images, classes, predictions, row, details) for row in order[:_EXAMPLES].tolist()]
        for name, order in (("easy", easy), ("hard", hard))
    }


def example_part(
    images: Split,
    classes: Sequence[str],
    predictions: Tensor,
    row: int,
    details: Callable[[int], dict[str, Any]],
) -> dict[str, Any]:
    """Return one `Example` of a report: the image in row `row`; the rest as in `examples_part`."""
    return {
        "image": _data_uri(images, row),
        "label": classes[int(images.labels[row])],
        "predicted": classes[int(predictions[row])],
        **details(row),
    }


def _data_uri(split: Split, row: int) -> str:
    pixels = split.image(row)
    array = pixels.permute(1, 2, 0).numpy() if pixels.shape[0] == 3 else pixels[0].numpy()
    image = Image.fromarray(array)
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
