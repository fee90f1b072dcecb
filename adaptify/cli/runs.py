"""Finding the run that a command is about."""

from __future__ import annotations

from pathlib import Path

from adaptify.errors import UsageError, did_you_mean
from adaptify.pipeline.folder import is_unfinished, settle

RUNS = Path("runs")


def find_run(given: Path | None, *, holding: str, runs: Path = RUNS) -> Path:
    """Return the run folder that was named, or the newest one.

    Args:
        given: A run folder, the name of one in `runs`, or the file in it that is wanted; `None`: the newest.
        holding: Name of the file that the run must have, as "report.json".
        runs: Folder of all runs.

    Raises:
        UsageError: There is no such run, or it lacks the file.
    """
    if given is None:
        return _newest(holding, runs)
    folder = given
    if given.is_file():
        folder = given.parent
    elif not given.exists() and (runs / given).is_dir():
        folder = runs / given
    if not folder.is_dir():
        near = did_you_mean(given.name, [run.name for run in _runs(runs)])
        raise UsageError(f"no run '{given}'{near}", f"Name a run folder, or none for the newest in {runs}/.")
    if is_unfinished(folder):
        raise UsageError(
            f"{folder} is an unfinished run",
            "If no process is filling it, go on with it: adaptify retrofit (or prune) --resume.",
        )
    settle(folder)
    if not (folder / holding).is_file():
        raise UsageError(
            f"{folder} has no {holding}",
            "Either it is no run folder, or its run did not finish: run it again.",
        )
    return folder


def find_target(given: Path | None, *, holding: str = "model.safetensors", runs: Path = RUNS) -> Path:
    """Return what was named to be run: a run folder, or a file that is in none.

    Args:
        given: A run folder, the name of one in `runs`, or a file; `None`: the newest run.
        holding: Name of the file that a run must have.
        runs: Folder of all runs.

    Raises:
        UsageError: There is no such file or run.
    """
    if given is None or given.is_dir() or (not given.exists() and (runs / given).is_dir()):
        return find_run(given, holding=holding, runs=runs)
    if not given.exists():
        siblings = given.parent.iterdir() if given.parent.is_dir() else ()
        near = did_you_mean(given.name, [entry.name for entry in (*siblings, *_runs(runs))])
        raise UsageError(f"there is no file or run '{given}'{near}", "Name a run folder, or a checkpoint.")
    return given


def _newest(holding: str, runs: Path) -> Path:
    # What is hidden is being written.
    found = [run for run in _runs(runs) if not run.name.startswith(".") and not is_unfinished(run)]
    finished = [run for run in found if (run / holding).is_file()]
    if not finished:
        raise UsageError(
            f"no finished run in {runs}/",
            "Make one with `adaptify retrofit` or `adaptify demo`, or name its folder.",
        )
    newest = max(finished, key=lambda run: ((run / holding).stat().st_mtime_ns, run.name))
    settle(newest)
    return newest


def _runs(runs: Path) -> list[Path]:
    return [run for run in runs.iterdir() if run.is_dir()] if runs.is_dir() else []
