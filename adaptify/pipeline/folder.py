"""Run folders: made under a hidden name, and given their own when the run is complete."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adaptify.errors import AdaptifyError, OutsideError, UsageError
from adaptify.files import OLD, replace_all, telling

RUNS = Path("runs")
MODEL = "model.safetensors"
REPORT = "report.json"
PAGE = "report.html"
RECIPE = "recipe.yaml"
RECORDS = "records.safetensors"
ENVIRONMENT = "env.json"
METRICS = "metrics.csv"
CHECKPOINTS = "checkpoints"
STATES = "states"
UNFINISHED = "unfinished.json"
_CHANGED = ".changed"  # in a run: files that are complete, and about to replace those of the run
FINETUNE = "finetune"

# What an unfinished run keeps.
_TRAINED = (UNFINISHED, RECIPE, METRICS, CHECKPOINTS, STATES, FINETUNE, "tensorboard")


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
def new_run(
    stem: str,
    *,
    output: Path | None = None,
    force: bool = False,
    resumed: Path | None = None,
    left: Callable[[Path], None] = lambda folder: None,
) -> Iterator[NewRun]:
    """Make a run folder that appears when the block succeeds.

    When it fails, nothing is left behind but what was trained, in `<folder>.unfinished`. The hidden folder of
    a process that was killed stays as it is.

    Args:
        stem: Beginning of its name: `runs/<stem>-NNN`.
        output: The folder to make instead.
        force: Replace `output` if it is there.
        resumed: A folder that was left behind, to be filled further; it gets the name that it was to have.
        left: Told of what stays of a run that was stopped, and could go on.

    Raises:
        UsageError: The folder is there already, is something else than a run, cannot be made, or is being
            filled by another process.
    """
    if resumed is None:
        check_output(output, force=force)
    run = _reserve(stem, output) if resumed is None else _take_up(resumed, force=force)
    with locked(run.work):
        if resumed is not None:
            strip(run.work)
        try:
            yield run
        except BaseException as error:
            _leave(run, error, left)
            raise
        _publish(run, force=force)


def _publish(run: NewRun, *, force: bool) -> None:
    """Give a complete run its name.

    Raises:
        OutsideError: The disk refuses it; what had the name before has it still.
    """
    old = run.final.with_name(f".{run.final.name}.old")
    try:
        if force and run.final.exists():
            shutil.rmtree(old, ignore_errors=True)
            run.final.rename(old)
        run.work.rename(run.final)
    except OSError as error:
        if old.exists() and not run.final.exists():
            old.rename(run.final)
        raise OutsideError(
            f"the run is complete, but cannot have its name, {run.final}: {error.strerror}",
            f"Nothing is lost: rename {run.work}.",
        ) from error
    # Only now: until it has its name, a run that is killed goes on from these.
    _forget_states(run.final)
    shutil.rmtree(old, ignore_errors=True)


def _forget_states(finished: Path) -> None:
    shutil.rmtree(finished / STATES, ignore_errors=True)
    with suppress(OSError):
        (finished / UNFINISHED).unlink(missing_ok=True)


def is_unfinished(folder: Path) -> bool:
    """Whether `folder` is a run that is not finished, whether or not a process is filling it."""
    is_named = _final_of(folder) == folder
    return (folder / UNFINISHED).is_file() and not (is_named and (folder / REPORT).is_file())


def is_left(folder: Path) -> bool:
    """Whether `folder` is an unfinished run that no process is filling."""
    return is_unfinished(folder) and is_free(folder)


def is_free(folder: Path) -> bool:
    """Whether no process is filling `folder`."""
    try:
        with locked(folder):
            return True
    except UsageError:
        return False


def last_written(folder: Path) -> tuple[int, str]:
    """When a file in `folder`, or in one within it, was last written, and its name: an order by age."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return max((path.stat().st_mtime_ns for path in files), default=0), folder.name


def left_behind(final: Path) -> list[Path]:
    """The folders of unfinished runs that were to become `final`, whether or not they are being filled."""
    if not final.parent.is_dir():
        return []
    return [
        entry
        for entry in sorted(final.parent.iterdir())
        if entry != final and (entry / UNFINISHED).is_file() and _final_of(entry) == final
    ]


def _final_of(folder: Path) -> Path:
    """Where an unfinished run was to be; a folder that was given another name keeps that."""
    match = re.fullmatch(r"\.(.+)\.part|(.+)\.unfinished\d*", folder.name)
    return folder.with_name(match.group(1) or match.group(2)) if match else folder


def _leave(run: NewRun, error: BaseException, left: Callable[[Path], None]) -> None:
    """Leave what was trained by a run that did not end well where it can be found: hours went into it."""
    if not run.work.exists():
        return  # it has its name already
    if not any(path.is_file() for name in (CHECKPOINTS, STATES) for path in (run.work / name).rglob("*")):
        shutil.rmtree(run.work, ignore_errors=True)
        return
    strip(run.work)
    names = (f"{run.final.name}.unfinished{number}" for number in ("", *range(2, 1000)))
    kept = next(path for name in names if not (path := run.final.with_name(name)).exists())
    try:
        run.work.rename(kept)
    except OSError:
        kept = run.work  # where --resume finds it too
    if isinstance(error, AdaptifyError):
        error.message = error.message.replace(str(run.work), str(kept))
        error.hint = error.hint.replace(str(run.work), str(kept))
    # What adaptify refuses it will refuse again, unless it was the disk or the like.
    if (kept / UNFINISHED).exists() and (
        not isinstance(error, AdaptifyError) or isinstance(error, OutsideError)
    ):
        left(kept)


def strip(work: Path) -> None:
    """Remove all but what was trained: the rest is quickly made again, and could be half-written."""
    for entry in work.iterdir():
        if entry.name in _TRAINED:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _take_up(left: Path, *, force: bool) -> NewRun:
    """Let the folder of an unfinished run be filled again."""
    final = _final_of(left)
    work = final.with_name(f".{final.name}.part")
    if final != left:
        check_output(final, force=force)
    with locked(left):
        if work != left:
            if work.exists():
                raise UsageError(
                    f"{work} is in the way: another run that was to become {final}",
                    f"Finish that one first (--resume {work}), or remove it.",
                )
            left.rename(work)
    return NewRun(work, final)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from filling `folder`; the system lets go of it when this one ends, however."""
    busy = UsageError(f"another process is filling {folder}", "Wait for it, or end it.")
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError as error:  # between our looking and our locking
        raise busy from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise busy from error
        except OSError:
            pass  # a file system without locks
        if not (folder.exists() and os.path.samestat(os.fstat(handle), os.stat(folder))):
            raise busy  # what we hold is not there any more, or under another name
        yield
    finally:
        os.close(handle)


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
    """Yield a hidden folder; when the block succeeds, the files in it replace those of `run`, all or none.

    A full disk is met while they are written, and leaves the run as it was. Of a process that is killed
    while it gives them their names, `settle` does the rest.

    Raises:
        UsageError: Another process is changing the run.
        OutsideError: The disk refuses it.
    """
    work = run / ".part"
    with locked(run):
        _finish_change(run)
        shutil.rmtree(work, ignore_errors=True)
        try:
            with telling(run):
                work.mkdir()
            yield work
            with telling(run):
                work.rename(run / _CHANGED)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        _finish_change(run)


def settle(run: Path) -> None:
    """Finish what a process that was killed left half-done in a finished run.

    Raises:
        UsageError: Another process is changing the run.
        OutsideError: The disk refuses it.
    """
    if (run / _CHANGED).exists() or (run / UNFINISHED).exists():
        with locked(run):
            _finish_change(run)
            _forget_states(run)


def _finish_change(run: Path) -> None:
    """Let files that are complete replace those of a run; if the disk refuses one, all stay as they were."""
    changed = run / _CHANGED
    if not changed.is_dir():
        return
    files = sorted(file for file in changed.iterdir() if not file.name.endswith(OLD))
    try:
        if files:
            replace_all(files, [run / file.name for file in files])
    finally:
        shutil.rmtree(changed, ignore_errors=True)


def _reserve(stem: str, output: Path | None) -> NewRun:
    parent = RUNS if output is None else output.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if output is not None:
            work = parent / f".{output.name}.part"
            if work.exists():
                _clear(NewRun(work, output))
            work.mkdir()
            return NewRun(work, output)
        while True:
            final = parent / f"{stem}-{_next_number(parent, stem):03d}"
            work = parent / f".{final.name}.part"
            try:
                work.mkdir()
            except FileExistsError:
                continue  # another run took the number since we looked
            if final.exists():  # another run was complete since we looked
                work.rmdir()
                continue
            return NewRun(work, final)
    except OSError as error:
        raise UsageError(
            f"cannot make a run folder in {parent}: {error.strerror}", "Choose another --output."
        ) from error


def _clear(run: NewRun) -> None:
    """Make room for a new run where one was killed; what it had trained is kept."""
    with locked(run.work):
        _leave(run, AdaptifyError("killed", "Go on with --resume."), lambda folder: None)


def _next_number(parent: Path, stem: str) -> int:
    taken = [
        int(match.group(1))
        for entry in parent.iterdir()
        if (match := re.fullmatch(rf"\.?{re.escape(stem)}-(\d+)(?:\.part|\.unfinished\d*)?", entry.name))
    ]
    return max(taken, default=0) + 1
