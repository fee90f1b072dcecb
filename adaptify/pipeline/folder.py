"""Run folders: made under a hidden name, and given their own when the run is complete."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adaptify.errors import AdaptifyError, UsageError

RUNS = Path("runs")
MODEL = "model.safetensors"
REPORT = "report.json"
PAGE = "report.html"
RECIPE = "recipe.yaml"
RECORDS = "records.safetensors"
ENVIRONMENT = "env.json"
METRICS = "metrics.csv"
CHECKPOINTS = "checkpoints"


class NewRun:
    """A run folder in the making.

    Attributes:
        work: The hidden folder that is being filled.
        final: Where it will be when it is complete.
    """

    def __init__(self, work: Path, final: Path) -> None:
        self.work = work
        self.final = final


@contextmanager
def new_run(stem: str, *, output: Path | None = None, force: bool = False) -> Iterator[NewRun]:
    """Make a run folder that appears when the block succeeds.

    When it fails, nothing is left behind but the checkpoints of a training, in `<folder>.unfinished`.

    Args:
        stem: Beginning of its name: `runs/<stem>-NNN`.
        output: The folder to make instead.
        force: Replace `output` if it is there.

    Raises:
        UsageError: `output` is there already, is something else than a run, or cannot be made.
    """
    check_output(output, force=force)
    run = _reserve(stem, output)
    old = run.final.with_name(f".{run.final.name}.old")
    try:
        yield run
        if force and run.final.exists():
            shutil.rmtree(old, ignore_errors=True)
            run.final.rename(old)
        run.work.rename(run.final)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        _keep_training(run, error)
        raise
    finally:
        shutil.rmtree(run.work, ignore_errors=True)


def _keep_training(run: NewRun, error: BaseException) -> None:
    """Leave the weights of a training that did not end well where they can be found: hours went into them."""
    if not any((run.work / CHECKPOINTS).glob("*")):
        return
    names = (f"{run.final.name}.unfinished{number}" for number in ("", *range(2, 1000)))
    kept = next(path for name in names if not (path := run.final.with_name(name)).exists())
    kept.mkdir()
    for name in (CHECKPOINTS, METRICS):
        if (run.work / name).exists():
            (run.work / name).rename(kept / name)
    if isinstance(error, AdaptifyError):
        error.message = error.message.replace(str(run.work), str(kept))
        error.hint = error.hint.replace(str(run.work), str(kept))


def check_output(output: Path | None, *, force: bool) -> None:
    """Make sure that `output` can become a run folder, before the work.

    Raises:
        UsageError: It is there already, and `force` is not given or it is no run that may be replaced.
    """
    if output is None or not output.exists():
        return
    if not force:
        raise UsageError(
            f"{output} is there already", "Choose another --output, or overwrite it with --force."
        )
    if not output.is_dir() or (any(output.iterdir()) and not (output / REPORT).is_file()):
        raise UsageError(
            f"{output} is no run folder, and --force overwrites nothing else", "Choose another --output."
        )


@contextmanager
def changed_run(run: Path) -> Iterator[Path]:
    """Yield a hidden folder; when the block succeeds, the files in it replace those of `run`.

    A full disk is met while they are written, and leaves the run as it was.
    """
    work = run / ".part"
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir()
        yield work
        for file in sorted(work.iterdir()):
            os.replace(file, run / file.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _reserve(stem: str, output: Path | None) -> NewRun:
    parent = RUNS if output is None else output.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if output is not None:
            work = parent / f".{output.name}.part"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            return NewRun(work, output)
        while True:
            final = parent / f"{stem}-{_next_number(parent, stem):03d}"
            work = parent / f".{final.name}.part"
            try:
                work.mkdir()
            except FileExistsError:
                continue  # another run took the number since we looked
            return NewRun(work, final)
    except OSError as error:
        raise UsageError(
            f"cannot make a run folder in {parent}: {error.strerror}", "Choose another --output."
        ) from error


def _next_number(parent: Path, stem: str) -> int:
    taken = [
        int(match.group(1))
        for entry in parent.iterdir()
        if (match := re.fullmatch(rf"\.?{re.escape(stem)}-(\d+)(?:\.part)?", entry.name))
    ]
    return max(taken, default=0) + 1
