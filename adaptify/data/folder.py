"""Folders of images, a folder for each class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adaptify.data.augment import Augmentation
from adaptify.data.decode import SHOWN, ImageFiles, decode, readable
from adaptify.data.source import MEMORY_LIMIT, Opened, Options
from adaptify.data.split import MemorySplit, Split
from adaptify.data.stream import StreamSplit
from adaptify.errors import UsageError
from adaptify.text import whole

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
MOST_CORRUPT = 0.1  # share of the images that may be left out: with more, the data set is another one
TEST_FOLDERS = ("val", "valid", "validation", "test")  # the first there is holds the test images

LAYOUT_HINT = "Expected FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg, or FOLDER/CLASS/*.jpg."


@dataclass(frozen=True)
class FolderSource:
    """Images in class folders.

    Attributes:
        files: N image files.
        labels: (N,) int64.
        indices: (N,) int64, positions in the sorted listing of the folder.
        options: How the images are to be read.
        in_memory: Keep the decoded images in memory, or read them again for every pass.
    """

    files: ImageFiles
    labels: Tensor
    indices: Tensor
    options: Options
    in_memory: bool

    def take(self, rows: Tensor) -> Split:
        """The images at positions `rows`, (K,) int64, as a split."""
        files, labels, indices = self.files.take(rows), self.labels[rows], self.indices[rows]
        input, workers = self.options.input, self.options.workers
        if not self.in_memory:
            return StreamSplit(files, labels, indices, input, workers)
        return MemorySplit(
            partial(decode, files, input, workers), labels, indices, input, Augmentation(flip=True)
        )


def open_folder(folder: str, options: Options) -> Opened:
    """Open a folder with `train/` and `val/` (or `valid/`, `test/`), or one folder of class folders.

    Raises:
        UsageError: The folder is laid out differently, has no images or fewer than two classes, or its
            parts have different classes.
    """
    root = Path(folder).expanduser()
    tests = [name for name in TEST_FOLDERS if (root / name).is_dir()]
    if not _is_divided(root, tests):
        return _opened(_list(root), None, options, [])
    if not tests or not (root / "train").is_dir():
        missing = "train/" if tests else "val/, valid/ or test/"
        present = tests[0] if tests else "train"
        raise UsageError(
            f"{folder} has {present}/ but no {missing}",
            f"Add {missing}, or give {root / present} to have it split with --val-split.",
        )
    train, test = _list(root / "train"), _list(root / tests[0])
    _check_same_classes(train, test)
    notes = [f"{name}/ is not used; the test images are {tests[0]}/" for name in tests[1:]]
    return _opened(train, test, options, notes)


@dataclass(frozen=True)
class _Listing:
    """The image files of a folder of class folders, and the class of each."""

    folder: Path
    classes: tuple[str, ...]
    files: ImageFiles
    labels: Tensor
    indices: Tensor


def _is_divided(root: Path, tests: Sequence[str]) -> bool:
    """Whether `root` holds parts rather than classes; "train" alone may be a class (of vehicles)."""
    train = root / "train"
    if not train.is_dir():
        return bool(tests) and len(tests) == len(_subfolders(root))
    return bool(tests) or bool(_subfolders(train))


def _subfolders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except OSError as error:
        raise UsageError(f"cannot list {folder}: {error.strerror}", "Check its permissions.") from error
    return sorted(name for name in names if not name.startswith((".", "__")))  # .git, __MACOSX


def _images(folder: Path) -> Iterator[str]:
    """Paths of the image files anywhere below `folder`, relative to its parent.

    Links are followed, since data sets are often put together of them; but no folder is entered twice, and
    what is no file (a pipe, a device) would never end.
    """
    entered: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        try:
            status = place.stat()
            with os.scandir(place) as entries:
                listed = list(entries)
        except OSError:  # gone by now, or not to be read: it has no images
            continue
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        below = os.path.relpath(place, folder.parent)
        for entry in listed:
            if entry.is_dir():
                waiting.append(place / entry.name)
            elif (
                entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".") and entry.is_file()
            ):
                yield os.path.join(below, entry.name)


def _list(folder: Path) -> _Listing:
    classes = _subfolders(folder)
    names: list[str] = []
    counts: list[int] = []
    for name in classes:
        found = sorted(_images(folder / name))
        names += found
        counts.append(len(found))
    if not names:
        raise UsageError(f"{folder} has no images in class folders", LAYOUT_HINT)
    if len(classes) < 2:
        raise UsageError(f"{folder} has only one class, {classes[0]}", LAYOUT_HINT)
    if 0 in counts:
        raise UsageError(
            f"the class folder {folder / classes[counts.index(0)]} has no images",
            f"Add images ({', '.join(EXTENSIONS)}) or remove the folder.",
        )
    files = ImageFiles(folder, np.array([os.fsencode(name) for name in names]))
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor(counts))
    return _Listing(folder, tuple(classes), files, labels, torch.arange(len(names)))


def _check_same_classes(train: _Listing, test: _Listing) -> None:
    differences = []
    for one, other in ((train, test), (test, train)):
        only = [name for name in one.classes if name not in set(other.classes)]
        if only:
            shown = ", ".join(only[:3]) + (f" and {len(only) - 3} more" if len(only) > 3 else "")
            differences.append(f"only {one.folder.name}/ has {shown}")
    if differences:
        raise UsageError(
            f"the class folders of {train.folder} and {test.folder} differ: {'; '.join(differences)}",
            "Give both the same class folders.",
        )


def _opened(train: _Listing, test: _Listing | None, options: Options, notes: list[str]) -> Opened:
    classes = train.classes
    if all(name.isdecimal() for name in classes) and list(classes) != sorted(classes, key=int):
        notes.append(f"numbered class folders are taken in the order of text: {', '.join(classes[:3])}, ...")
    listings = [train] if test is None else [train, test]
    if options.skip_corrupt:
        listings = [_without_unreadable(listing, options, notes) for listing in listings]
    channels, height, width = options.input.shape
    images = sum(len(listing.files) for listing in listings)
    in_memory = images * channels * height * width <= MEMORY_LIMIT
    sources = [FolderSource(part.files, part.labels, part.indices, options, in_memory) for part in listings]
    return Opened(classes, sources[0], sources[1] if test is not None else None, tuple(notes))


def _without_unreadable(listing: _Listing, options: Options, notes: list[str]) -> _Listing:
    with options.progress.stage(f"check {listing.folder}", total=len(listing.files)) as stage:
        good = readable(listing.files, options.workers, stage.advance)
    bad = (~good).nonzero().flatten().tolist()
    folder, files = listing.folder, listing.files
    if not bad:
        return listing
    more = ", ..." if len(bad) > SHOWN else ""
    shown = ", ".join(os.fsdecode(files.names[i]) for i in bad[:SHOWN]) + more
    told = f"{whole(len(bad))} of {whole(len(files))} images of {folder}"
    if len(bad) > MOST_CORRUPT * len(files):
        raise UsageError(
            f"{told} cannot be read, too many to leave out: {shown}",
            f"Up to {MOST_CORRUPT:.0%} are left out: copy the data set again.",
        )
    notes.append(f"left out {told}, unreadable: {shown}")
    rows = good.nonzero().flatten()
    return _Listing(folder, listing.classes, files.take(rows), listing.labels[rows], listing.indices[rows])
