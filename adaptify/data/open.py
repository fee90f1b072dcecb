"""Opening a data set by its spec: a short name with an argument, or a folder."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from adaptify.data.cifar import open_cifar10, open_cifar100
from adaptify.data.dataset import Data
from adaptify.data.fake import open_fake
from adaptify.data.folder import open_folder
from adaptify.data.holdout import stratified_split
from adaptify.data.identity import check_apart
from adaptify.data.source import Opened, Opener, Options
from adaptify.data.uci_digits import open_digits
from adaptify.errors import UsageError, did_you_mean
from adaptify.input_spec import InputSpec
from adaptify.progress import SILENT, Progress

Part = Literal["train", "holdout", "test"]

OPENERS: dict[str, Opener] = {
    "cifar10": open_cifar10,
    "cifar100": open_cifar100,
    "digits": open_digits,
    "fake": open_fake,
}
SPECS = "FOLDER, cifar10:FOLDER, cifar100:FOLDER, digits or fake:N"

VAL_SPLIT = 0.2  # share of the images used for testing where a data set has no part for that
VAL_SEED = 0
MOST_WORKERS = 16


def open_data(
    spec: str,
    *,
    input: InputSpec,
    holdout: float = 0.1,
    val_split: float | None = None,
    seed: int = 0,
    workers: int | None = None,
    skip_corrupt: bool = False,
    parts: Collection[Part] = ("train", "holdout", "test"),
    progress: Progress = SILENT,
) -> Data:
    """Open a data set and cut it into training, holdout and test images.

    Args:
        spec: `FOLDER` with `train/` and `val/` (or `valid/`, `test/`), or with class folders;
            `cifar10:FOLDER` and `cifar100:FOLDER`, the standard python batches; `digits`, part of the
            package; `fake:N` or `fake:N:CLASSES`, synthetic. A folder named like one of these: `./digits`.
        input: Shape and normalisation of the batches.
        holdout: Share of the training images that is held out, stratified by class.
        val_split: Share of the images used for testing, stratified by class, where the data set has no
            part for testing; 0.2 unless given. Which images these are does not depend on `seed`, so that
            they stay unseen by every run.
        seed: Seed of the holdout; the same seed gives the same images on every machine.
        workers: Threads that decode, and processes that read a large data set; 0 reads in the caller,
            `None` takes one for each CPU.
        skip_corrupt: Leave unreadable images out, with a note, instead of refusing them. Takes one
            more pass over the files.
        parts: Splits that will be used. Those that are kept in memory are decoded now, so that a bad image is
            found before the work; the others when they are used.
        progress: Where the number of images read is reported to.

    Raises:
        UsageError: The spec is unknown, the data cannot be used, a share is not in (0, 1), or most of the
            images that would be held out are test images.
    """
    _check_input(input)
    if workers is not None and workers < 0:
        raise UsageError(f"{workers} workers are not possible", "Use 0 or more.")
    options = Options(input, _cpus() if workers is None else workers, skip_corrupt, progress)
    opener, argument = _parse(spec)
    data = _cut(spec, opener(argument, options), input, holdout, val_split, seed)
    _prepare(data, parts, progress)
    if not {"holdout", "test"} <= set(parts):
        return data
    return replace(data, notes=(*data.notes, *check_apart(data.holdout, data.test)))


def _parse(spec: str) -> tuple[Opener, str]:
    name, _, argument = spec.partition(":")
    if name in OPENERS:
        if not argument and name != "digits":
            example = "fake:64" if name == "fake" else f"{name}:FOLDER"
            raise UsageError(f"{name} needs something after its name", f"Write, for example, {example}.")
        return OPENERS[name], argument
    path = Path(spec).expanduser()
    if path.is_file():
        raise UsageError(f"{spec} is a file, not a folder", "Extract archives; give the folder of images.")
    if not spec or not path.is_dir():
        raise UsageError(
            f"{spec!r} is neither a folder nor a known data set{did_you_mean(name, OPENERS)}",
            f"Give {SPECS}.",
        )
    return open_folder, spec


def _check_input(input: InputSpec) -> None:
    if input.channels not in (1, 3):
        raise UsageError(
            f"the network wants images of {input.channels} channels",
            "Images have 1 (grey) or 3 (RGB) channels.",
        )
    if min(input.height, input.width) < 1:
        raise UsageError(f"there is no image of {input.height}x{input.width} pixels", "Check --input-size.")
    for name, values in (("mean", input.mean), ("std", input.std)):
        if len(values) != input.channels:
            raise UsageError(
                f"{name} has {len(values)} value(s), the input has {input.channels} channel(s)",
                f"Give one value for each channel with --{name}.",
            )
    if min(input.std) <= 0:
        raise UsageError(f"std has a value of {min(input.std)}", "Give positive values with --std.")


def _cut(
    spec: str, opened: Opened, input: InputSpec, holdout: float, val_split: float | None, seed: int
) -> Data:
    every = torch.arange(len(opened.train.labels))
    if opened.test is None:
        share = VAL_SPLIT if val_split is None else val_split
        every, test_rows = stratified_split(opened.train.labels, share, VAL_SEED)
        test = opened.train.take(test_rows)
    elif val_split is not None:
        raise UsageError(
            f"the data set {spec} has its own test images, so a split of {val_split} cannot be taken",
            "Leave --val-split out.",
        )
    else:
        test = opened.test.take(torch.arange(len(opened.test.labels)))
    kept, held = stratified_split(opened.train.labels[every], holdout, seed)
    return Data(
        name=spec,
        train=opened.train.take(every[kept]),
        holdout=opened.train.take(every[held]),
        test=test,
        classes=opened.classes,
        input=input,
        notes=opened.notes,
    )


def _prepare(data: Data, parts: Collection[Part], progress: Progress) -> None:
    splits = [getattr(data, part) for part in parts]
    with progress.stage("load images", total=sum(len(split) for split in splits)) as stage:
        for split in splits:
            split.prepare(stage.advance)


def _cpus() -> int:
    # The CPUs this process may use, where the system tells; containers often allow fewer than there are.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, MOST_WORKERS)
