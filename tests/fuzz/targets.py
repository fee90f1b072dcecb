"""What must stand any file: for each kind, what a command does with it first, and files to damage."""

from __future__ import annotations

import io
import os
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from rich.console import Console

from adaptify import artifact
from adaptify.checkpoint import load_model
from adaptify.data.cifar import CIFAR10, read_images
from adaptify.data.decode import ImageFiles, decode, readable
from adaptify.errors import AdaptifyError
from adaptify.input_spec import InputSpec
from adaptify.pipeline.unfinished import find_unfinished
from adaptify.progress import SILENT
from adaptify.recipe import check
from adaptify.reports.html import render_html
from adaptify.reports.schema import read_report
from adaptify.reports.tables import report_tables
from adaptify.training.records import load_records
from adaptify.training.state import States

from . import mutations, samples

MOST_SECONDS = 10.0
"""Of processor time for one file; a sound one takes less than one."""


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        name: What a file of this kind is called where it lies.
        read: Does with it what a command does.
        samples: Sound files.
        mutations: Ways to damage one that keep its format, beside those that change bytes.
    """

    name: str
    read: Callable[[Path], object]
    samples: Callable[[], tuple[bytes, ...]]
    mutations: tuple[mutations.Mutation, ...] = ()

    def damaged(self, random: Random) -> bytes:
        """Return one of the samples, damaged."""
        data = random.choice(self.samples())
        try:
            return random.choice((mutations.flipped, *self.mutations, *self.mutations))(data, random)
        except (ValueError, KeyError, StopIteration, zipfile.BadZipFile):  # not made for this kind of file
            return mutations.flipped(data, random)


def attack(target: Target, data: bytes, folder: Path) -> str:
    """Let a reader have a file, and return what is wrong with how it took that; nothing, if it is well.

    Args:
        target: The kind of file.
        data: The file.
        folder: An empty folder, also the working directory, to put it in.
    """
    path = folder / target.name
    path.write_bytes(data)
    started = time.process_time()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            target.read(path)
        except AdaptifyError as error:
            if str(folder) not in error.message:
                return f"the message does not tell where: {error.message[:500]!r}"
            if not error.hint:
                return f"there is no hint: {error.message[:500]!r}"
            if len(error.message) > 5000:
                return f"the message is {len(error.message)} characters long: {error.message[:300]!r}"
    seconds = time.process_time() - started
    if seconds > MOST_SECONDS:
        return f"it took {seconds:.1f} s"
    if len(warned) > 3:
        return f"{len(warned)} warnings, as {warned[0].message}"
    if {entry.name for entry in folder.iterdir()} != {target.name}:
        return f"there is more than the file: {sorted(entry.name for entry in folder.iterdir())}"
    return ""


def _read_checkpoint(path: Path) -> object:
    return load_model(path, arch="adaptify:digits_resnet", arch_kwargs=samples.KWARGS)


def _read_artifact(path: Path) -> object:
    model = artifact.load(path)
    return model.budget, model(torch.zeros(1, *model.traced.input_shape))


def _read_state(path: Path) -> object:
    return States(path.parent).restore(samples.training_state(), SILENT)


def _read_report(path: Path) -> object:
    report = read_report(path)
    console = Console(file=io.StringIO(), width=100)
    for table in report_tables(report, layers=True):
        console.print(table)
    return render_html(report)


def _read_image(path: Path) -> object:
    files = ImageFiles(path.parent, np.array([os.fsencode(path.name)]))
    tried = readable(files, 1, lambda done: None)
    return tried, decode(files, InputSpec(height=8, width=8), 1, lambda done: None)


TARGETS = {
    "checkpoint": Target(
        "weights.pth",
        _read_checkpoint,
        samples.checkpoints,
        (mutations.zipped, mutations.pickled),
    ),
    "safetensors": Target(
        "weights.safetensors", _read_checkpoint, samples.tensor_files, (mutations.tensor_file,)
    ),
    "artifact": Target(
        "model.safetensors",
        _read_artifact,
        samples.artifacts,
        (mutations.planned, mutations.planned, mutations.tensor_file),
    ),
    "recipe": Target("recipe.yaml", check, samples.recipes, (mutations.yaml_text,)),
    "report": Target("report.json", _read_report, samples.reports, (mutations.json_text,)),
    "unfinished": Target(
        "unfinished.json",
        lambda path: find_unfinished(path.parent, "retrofit"),
        samples.beginnings,
        (mutations.json_text,),
    ),
    "state": Target(
        "epoch-000001.safetensors", _read_state, samples.states, (mutations.tensor_file, mutations.stated)
    ),
    "records": Target("records.safetensors", load_records, samples.records, (mutations.tensor_file,)),
    "image": Target("image.png", _read_image, samples.images),
    "cifar": Target(
        "data_batch_1", lambda path: read_images(path, CIFAR10, 10), samples.batches, (mutations.batch,)
    ),
}
