"""`retrofit` with a recipe of several stages: each works on what the one before made.

The folder of such a run is that of its last stage, and holds those of all stages. `stages.json` says what is
to be done; a stage whose folder is there is done, so that a run that was stopped goes on behind it.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from adaptify.bounds import brief, parse_json, read_text, refuse_newer
from adaptify.errors import UsageError
from adaptify.files import write_text
from adaptify.models.registry import is_user_code
from adaptify.pipeline import folder
from adaptify.pipeline.calibrate import calibrate
from adaptify.pipeline.part_run import Within, run_part
from adaptify.pipeline.stage_rows import choice_after, stage_of
from adaptify.progress import SILENT, Progress
from adaptify.recipe import Recipe
from adaptify.reports.html import write_html
from adaptify.reports.schema import Report, Stage, read_report, write_report
from adaptify.stages import Stage as Step
from adaptify.stages import Stages
from adaptify.version import VERSION

INDEX = "stages.json"
PARTS = "stages"
_FORMAT, _VERSION = "adaptify.stages", 1


@dataclass(frozen=True)
class Staged:
    """A finished run: its folder and its report."""

    folder: Path
    report: Report


def run_stages(
    stages: Stages, *, output: Path | None = None, force: bool = False, progress: Progress = SILENT
) -> Staged:
    """Carry out all stages, in a new folder; what `force` replaces is kept beside it until all are done.

    Args:
        stages: The recipe.
        output: The folder to make instead of `runs/<checkpoint>-stages-NNN`.
        force: Replace `output` if it is there.
        progress: Told how far the work is.

    Raises:
        AdaptifyError: As each stage does; the stages before it are kept.
    """
    stages.resolved()
    folder.check_output(output, force=force)
    path = output or _next_folder(stages)
    if path.exists():
        old = _replaced(path)
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    path.mkdir(parents=True)
    value = {
        "format": _FORMAT,
        "version": _VERSION,
        "adaptify": VERSION,
        "recipe": stages.model_dump(mode="json"),
    }
    write_text(path / INDEX, json.dumps(value, indent=1) + "\n")
    return go_on(path, progress=progress)


def go_on(path: Path, *, progress: Progress = SILENT) -> Staged:
    """Carry out the stages that are left of a run that was stopped.

    Raises:
        UsageError: There is nothing left to do, or `stages.json` is damaged.
        AdaptifyError: As each stage does.
    """
    stages = read_stopped(path)
    with folder.locked(path):
        try:
            done = _carry_out(stages, path, progress)
        except BaseException:
            _leave(path, progress)
            raise
        shutil.rmtree(_replaced(path), ignore_errors=True)
        return done


def read_stopped(path: Path) -> Stages:
    """Read what a run that was stopped is to do.

    Raises:
        UsageError: There is nothing left to do, or `stages.json` is damaged.
    """
    stages = _read(path)
    if (path / folder.REPORT).is_file():
        raise UsageError(f"{path} is finished", "There is nothing left to do; look at it: adaptify report.")
    return stages


def newest_stopped(runs: Path = folder.RUNS) -> Path | None:
    """Return the newest run of several stages that was stopped; None if one of a single stage is newer."""
    entries = list(runs.iterdir()) if runs.is_dir() else []
    staged = [entry for entry in entries if _is_stopped(entry)]
    single = [entry for entry in entries if folder.is_left(entry)]
    newest = max(staged + single, key=folder.last_written, default=None)
    return newest if newest in staged else None


def _is_stopped(path: Path) -> bool:
    if not (path / INDEX).is_file() or (path / folder.REPORT).is_file() or path.name.startswith("."):
        return False
    return folder.is_free(path)


def _replaced(path: Path) -> Path:
    """Where the run is that `path` is to replace. The new one needs the name: its recipes hold it."""
    return path.parent / f".{path.name}.old"


def _leave(path: Path, progress: Progress) -> None:
    """Keep what stages did; where there is nothing yet, what was to be replaced has its name again."""
    old = _replaced(path)
    if not any((path / PARTS).glob("*")):
        shutil.rmtree(path)
        if old.exists():
            old.rename(path)
        return
    kept = f"\n  what it replaces is kept until then: {old}" if old.exists() else ""
    progress.note(f"unfinished: {path}\n  to go on: adaptify retrofit --resume {path}{kept}")


def _carry_out(stages: Stages, path: Path, progress: Progress) -> Staged:
    rows: list[Stage] = []
    previous: Path | None = None
    report: Report | None = None
    steps = stages.resolved()
    first = steps[0].recipe
    assert first is not None
    # What a stage left may run the code that the recipe's own network may run, and no other.
    trusted = first.model.trust_pickle or is_user_code(first.model.arch)
    for number, step in enumerate(steps, 1):
        target = path / PARTS / f"{number}-{step.command}"
        told = Within(progress, f"stage {number} ({step.command})")
        if (target / folder.REPORT).is_file():
            told.note("done before")
        else:
            told.note("begins")
            _work(step, target, previous, told, trust_code=trusted)
        report = read_report(target / folder.REPORT)
        place = target.relative_to(path).as_posix()
        rows.append(
            stage_of(step.command, place, report)
            if step.recipe is not None
            else choice_after(rows[-1], place, report)
        )
        previous = target
    assert previous is not None
    assert report is not None
    whole = report.model_copy(update={"stages": rows})
    for file in sorted(previous.iterdir()):
        if file.is_file() and file.name != folder.REPORT:
            _link(file, path / file.name)
    write_html(whole, path / folder.PAGE)
    write_report(whole, path / folder.REPORT)  # the last: what has a report is finished
    return Staged(path, whole)


def _work(step: Step, target: Path, previous: Path | None, progress: Progress, *, trust_code: bool) -> None:
    """Do one stage, or what is left of it, in the folder `target`."""
    if step.recipe is None:
        assert previous is not None
        _choose(step, target, previous, progress, trust_code=trust_code)
        return
    recipe = step.recipe if previous is None else _on(step.recipe, previous, trust_code=trust_code)
    run_part("prune" if step.command == "prune" else "retrofit", recipe, target, progress)


def _choose(step: Step, target: Path, previous: Path, progress: Progress, *, trust_code: bool) -> None:
    """Copy the run of the stage before, and choose its operating point again."""
    work = target.with_name(f".{target.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(previous, work)
    try:
        calibrate(work, step.request, trust_code=trust_code, progress=progress)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _on(recipe: Recipe, previous: Path, *, trust_code: bool) -> Recipe:
    """The recipe with the network of the stage before."""
    made = recipe.model.model_copy(
        update={"checkpoint": str(previous), "arch": None, "arch_kwargs": {}, "trust_pickle": trust_code}
    )
    return recipe.model_copy(update={"model": made})


def _next_folder(stages: Stages) -> Path:
    stem = f"{Path(str(stages.model.get('checkpoint'))).stem.rpartition(':')[2]}-stages"
    number = 1
    while (path := folder.RUNS / f"{stem}-{number:03d}").exists():
        number += 1
    return path


def _link(source: Path, target: Path) -> None:
    """Let a file be in two folders, without its bytes twice where the file system can do that."""
    target.unlink(missing_ok=True)
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)


def _read(path: Path) -> Stages:
    file = path / INDEX
    try:
        value = parse_json(read_text(file))
        refuse_newer(value, _VERSION, file)
        return Stages.model_validate(value["recipe"])
    except (OSError, ValueError, AttributeError, KeyError, TypeError, ValidationError) as error:
        raise UsageError(f"{file} is damaged: {brief(error)}", "Start anew.") from error
