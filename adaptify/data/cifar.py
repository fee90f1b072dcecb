"""CIFAR-10 and CIFAR-100 from their standard python batches (https://www.cs.toronto.edu/~kriz/cifar.html).

The batches are pickles, and a pickle can run code: `pickled` reads them, and calls nothing that they name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptify.bounds import brief
from adaptify.data.augment import Augmentation
from adaptify.data.pickled import read_pickle
from adaptify.data.source import ArraySource, Opened, Options
from adaptify.errors import UsageError

SIDE = 32  # height and width of an image in pixels


@dataclass(frozen=True)
class Layout:
    """Where a CIFAR data set keeps what."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: bytes
    names: bytes


CIFAR10 = Layout(
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    train=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test="test_batch",
    meta="batches.meta",
    labels=b"labels",
    names=b"label_names",
)
CIFAR100 = Layout(
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    train=("train",),
    test="test",
    meta="meta",
    labels=b"fine_labels",
    names=b"fine_label_names",
)


def open_cifar10(folder: str, options: Options) -> Opened:
    """Open CIFAR-10 in `folder` or its sub-folder `cifar-10-batches-py`."""
    return _open(folder, options, CIFAR10)


def open_cifar100(folder: str, options: Options) -> Opened:
    """Open CIFAR-100 in `folder` or its sub-folder `cifar-100-python`, with its 100 fine labels."""
    return _open(folder, options, CIFAR100)


def read_batch(path: Path) -> dict[bytes, Any]:
    """Read a pickled batch, admitting arrays of bytes, bytes, text, numbers, lists and dicts.

    Raises:
        UsageError: The file cannot be read, is not such a pickle, or asks for any other object.
    """
    try:
        value = read_pickle(path)
    except Exception as error:  # a damaged pickle can raise anything
        raise UsageError(
            f"cannot read {path} as a CIFAR batch: {brief(error)}",
            "Download and extract the data set again.",
        ) from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} is not a CIFAR batch: it holds no dict", "Download the data set again.")
    return value


def _open(folder: str, options: Options, layout: Layout) -> Opened:
    root = Path(folder).expanduser()
    if (root / layout.folder).is_dir():
        root = root / layout.folder
    missing = [name for name in (*layout.train, layout.test, layout.meta) if not (root / name).is_file()]
    if missing:
        raise UsageError(
            f"{root} lacks {', '.join(missing)}",
            f"Give the folder that {layout.archive} was extracted in, or its {layout.folder}.",
        )
    names = read_batch(root / layout.meta).get(layout.names)
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise UsageError(f"{root / layout.meta} has no list of class names", "Extract the data set again.")
    train = [read_images(root / name, layout, len(names)) for name in layout.train]
    test = read_images(root / layout.test, layout, len(names))
    return Opened(
        classes=tuple(name.decode(errors="replace") for name in names),
        train=_source(torch.cat([pixels for pixels, _ in train]), torch.cat([y for _, y in train]), options),
        test=_source(*test, options),
    )


def read_images(path: Path, layout: Layout, classes: int) -> tuple[Tensor, Tensor]:
    """Pixels (n, 3, 32, 32) uint8 and labels (n,) int64 of one batch file.

    Raises:
        UsageError: The file is no such batch.
    """
    batch = read_batch(path)
    data, labels = batch.get(b"data"), batch.get(layout.labels)
    if not isinstance(data, np.ndarray) or data.shape[1:] != (3 * SIDE * SIDE,):
        raise UsageError(f"{path} has no uint8 array 'data' of rows of 3072", "Extract the data set again.")
    if (
        not isinstance(labels, list)
        or len(labels) != len(data)
        or not all(map(range(classes).__contains__, labels))
    ):
        raise UsageError(
            f"{path} has no list '{layout.labels.decode()}' of {len(data)} numbers below {classes}",
            "Extract the data set again.",
        )
    return torch.tensor(data.reshape(-1, 3, SIDE, SIDE)), torch.tensor(labels, dtype=torch.int64)


def _source(pixels: Tensor, labels: Tensor, options: Options) -> ArraySource:
    return ArraySource(pixels, labels, options.input, Augmentation(flip=True))
