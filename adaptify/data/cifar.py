"""CIFAR-10 and CIFAR-100 from their standard python batches (https://www.cs.toronto.edu/~kriz/cifar.html).

The batches are pickles, and a pickle can run code: they are read by an unpickler that admits
numpy arrays and plain containers, nothing else.
"""

from __future__ import annotations

import codecs
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptify.bounds import brief
from adaptify.data.augment import Augmentation
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
    """Read a pickled batch, admitting numpy arrays, bytes, text, numbers, lists and dicts.

    Raises:
        UsageError: The file cannot be read, is not such a pickle, or asks for any other object.
    """
    try:
        with path.open("rb") as file:
            value = _Unpickler(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise UsageError(
            f"cannot read {path} as a CIFAR batch: {brief(error)}",
            "Download and extract the data set again.",
        ) from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} is not a CIFAR batch: it holds no dict", "Download the data set again.")
    return value


class _Unpickler(pickle._Unpickler):
    """Admits the few objects that numpy arrays are made of, whatever numpy calls their module.

    The one in Python: that in C makes room for whatever number a file gives to an object, 64 GiB in the worst
    case.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]  # that function, without naming a private module
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in protocol 2
            return codecs.encode
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not data")


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
    train = [_images(root / name, layout, len(names)) for name in layout.train]
    test = _images(root / layout.test, layout, len(names))
    return Opened(
        classes=tuple(name.decode(errors="replace") for name in names),
        train=_source(torch.cat([pixels for pixels, _ in train]), torch.cat([y for _, y in train]), options),
        test=_source(*test, options),
    )


def _images(path: Path, layout: Layout, classes: int) -> tuple[Tensor, Tensor]:
    """Pixels (n, 3, 32, 32) uint8 and labels (n,) int64 of one batch file."""
    batch = read_batch(path)
    data, labels = batch.get(b"data"), batch.get(layout.labels)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3 * SIDE * SIDE,):
        raise UsageError(f"{path} has no uint8 array 'data' of rows of 3072", "Extract the data set again.")
    if not isinstance(labels, list) or len(labels) != len(data) or not set(labels) <= set(range(classes)):
        raise UsageError(
            f"{path} has no list '{layout.labels.decode()}' of {len(data)} numbers below {classes}",
            "Extract the data set again.",
        )
    return torch.tensor(data.reshape(-1, 3, SIDE, SIDE)), torch.tensor(labels, dtype=torch.int64)


def _source(pixels: Tensor, labels: Tensor, options: Options) -> ArraySource:
    return ArraySource(pixels, labels, options.input, Augmentation(flip=True))
