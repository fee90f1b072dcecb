"""`export`: a network as a file that runs without adaptify, checked on images before it is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptify import artifact
from adaptify.assembly import Adapted
from adaptify.data import Data, check_labels
from adaptify.errors import UsageError
from adaptify.exports.reference import Reference, observe
from adaptify.exports.write import SUFFIXES, Options, Prepared, paths_of, prepare, write
from adaptify.models.registry import Architecture
from adaptify.pipeline import folder
from adaptify.pipeline.prepare import input_spec, open_section
from adaptify.progress import SILENT, Progress
from adaptify.recipe import DataSection, resolve

FOLDER = "export"
"""Folder of a run for what is exported of it."""

_MOST_IMAGES = 512
_BATCH = 32


@dataclass(frozen=True)
class Exported:
    """What was written, and how it was checked.

    Attributes:
        target: What was exported.
        format: Format of the file.
        files: The file, and what lies beside it.
        bytes: Their size.
        images: How many images it was compared on.
        data: The data set that they are of; None: random values.
        max_error: The largest difference of a logit.
        relative_error: The same as a part of the largest logit.
        turned: Images that rounding let fall the other way at a threshold.
        untaken: Ways through the network that no image took.
        notes: What a user should know of it.
        facts: What the file says of itself.
    """

    target: str
    format: str
    files: tuple[str, ...]
    bytes: int
    images: int
    data: str | None
    max_error: float
    relative_error: float
    turned: int
    untaken: tuple[str, ...]
    notes: tuple[str, ...]
    facts: dict[str, Any]


def export(
    target: Path,
    options: Options,
    *,
    output: Path | None = None,
    data: DataSection | None = None,
    force: bool = False,
    trust_code: bool = False,
    progress: Progress = SILENT,
) -> Exported:
    """Write the network of a run folder or artifact as a file of another format.

    Args:
        target: What to export.
        options: How.
        output: The file; by default one in the folder `export` beside the artifact.
        data: Images to compare on; a run knows its own.
        force: Whether a file that is there may be replaced.
        trust_code: Whether an artifact may be built by code of the user.
        progress: Told what happens.

    Raises:
        UsageError: The file is there already, or the format cannot hold such a network.
        ModelError: The network cannot be loaded or exported.
        TargetError: The file did not compute what the network computes, and was not kept.
    """
    source = artifact.artifact_path(target)
    path = output or source.parent / FOLDER / source.with_suffix(SUFFIXES[options.format]).name
    _check_output(path, source, options, force)
    model = artifact.load(target, trust_code=trust_code)
    with progress.stage("prepare"):
        prepared = prepare(model, options)
    opened, notes = _open(prepared, target, data, progress)
    return _write(prepared, path, str(target), options, opened, notes, progress)


def export_network(
    model: Adapted,
    path: Path,
    options: Options,
    *,
    data: Data | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Exported:
    """Write a network as a file of another format.

    Args:
        model: In evaluation mode, on the CPU.
        path: The file.
        options: How.
        data: Images to compare on: its test part; None: random values.
        force: Whether a file that is there may be replaced.
        progress: Told what happens.

    Raises:
        UsageError, ModelError, TargetError: As `export` does.
    """
    _check_output(path, None, options, force)
    with progress.stage("prepare"):
        prepared = prepare(model, options)
    notes = () if data is not None else ("compared on random images: no data was given",)
    return _write(prepared, path, type(model.traced.root).__name__, options, data, notes, progress)


def _write(
    prepared: Prepared,
    path: Path,
    target: str,
    options: Options,
    opened: Data | None,
    notes: tuple[str, ...],
    progress: Progress,
) -> Exported:
    with progress.stage("run the network"):
        reference = _reference(prepared, opened)
    with progress.stage(f"write and check {path.name}"):
        written = write(prepared, path, reference, None if opened is None else opened.classes)
    return Exported(
        target=target,
        format=options.format,
        files=tuple(str(file) for file in written.files),
        bytes=sum(file.stat().st_size for file in written.files),
        images=written.checked.images,
        data=None if opened is None else opened.name,
        max_error=written.checked.max_error,
        relative_error=written.checked.relative_error,
        turned=written.checked.turned,
        untaken=written.checked.untaken,
        notes=(*prepared.notes, *notes),
        facts=written.facts,
    )


def _check_output(path: Path, source: Path | None, options: Options, force: bool) -> None:
    """Make sure that the files may be written, before the work.

    Raises:
        UsageError: One is there already, is a folder, or is what is exported.
    """
    files = paths_of(path, options.format)
    if len(set(files)) < len(files):
        raise UsageError(f"{path} is the name of its weights", "Let the name end in .py.")
    for file in files:
        if source is not None and file.resolve() == source.resolve():
            raise UsageError(f"{file} is what is exported", "Choose another --output.")
        if file.is_dir():
            raise UsageError(f"{file} is a folder", f"Name a file: --output {file / f'model{path.suffix}'}.")
        if file.exists() and not force:
            raise UsageError(
                f"{file} is there already", "Choose another --output, or overwrite it with --force."
            )


def _open(
    prepared: Prepared, target: Path, data: DataSection | None, progress: Progress
) -> tuple[Data | None, tuple[str, ...]]:
    """The images of the run, where they can be opened, and what to say where not."""
    given = data is not None
    recipe = target / folder.RECIPE
    if data is None and recipe.is_file():
        data = resolve(None, file=recipe).data
    if data is None or not data.source:
        return None, ("compared on random images: no data is known; say which with --data",)
    assert prepared.model.plan is not None
    spec = input_spec(Architecture.from_json(prepared.model.plan.architecture).input, data)
    try:
        opened = open_section(data, spec, progress=progress)
        check_labels(opened, prepared.model.num_classes)
    except UsageError as error:
        if given:
            raise
        return None, (f"compared on random images: {error.message}",)
    return opened, ()


def _reference(prepared: Prepared, opened: Data | None) -> Reference:
    static = prepared.network is not None
    return observe(
        prepared.model, _images(prepared, opened, _BATCH if static else _MOST_IMAGES), static=static
    )


def _images(prepared: Prepared, opened: Data | None, most: int) -> Iterator[Tensor]:
    """Batches of up to `most` images in all."""
    if opened is not None:
        left = most
        for images, _ in opened.test.batches(_BATCH):
            yield images[:left]
            left -= len(images)
            if left <= 0:
                return
        return
    generator = torch.Generator().manual_seed(0)
    for _ in range(most // _BATCH):
        yield torch.randn(_BATCH, *prepared.model.traced.input_shape, generator=generator)
