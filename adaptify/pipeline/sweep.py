"""`sweep`: several methods and targets on one checkpoint, or the trials of a search, side by side.

A sweep is a folder with a run folder for each point, and `sweep.json`, which says what there is to do and
what came of it. A point whose run folder is there is done: a sweep that was stopped goes on with the others.
Of a search it has the trials so far and the next one, which is proposed when the one before is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adaptify.errors import AdaptifyError, TargetError, UsageError
from adaptify.pipeline import folder
from adaptify.pipeline.part_run import Within, run_part
from adaptify.pipeline.search import Search, check_installed
from adaptify.pipeline.sweep_file import INDEX, Point, read_index, write_index
from adaptify.pipeline.sweep_plan import next_trial
from adaptify.progress import SILENT, Progress
from adaptify.reports.compare import Comparison, compare
from adaptify.reports.compare_html import write_comparison
from adaptify.reports.held_out import held_out, held_out_front
from adaptify.reports.pareto import FrontPoint, pareto_front
from adaptify.reports.schema import Report, read_report

SWEEPS = Path("sweeps")
PAGE = "sweep.html"
_CHOSEN = (
    "first come the trials that no other one beats on held-out images, by which they were chosen; all "
    "figures here are of test images"
)


@dataclass(frozen=True)
class Sweep:
    """What came of a sweep.

    Attributes:
        folder: Where it is.
        points: Its points.
        reports: Name and report of each that succeeded.
        comparison: They side by side.
        front: The operating points of all that no other one beats; of a search, the trials that none beats
            on held-out images.
        search: What was looked for, if it is a search.
    """

    folder: Path
    points: tuple[Point, ...]
    reports: tuple[tuple[str, Report], ...]
    comparison: Comparison
    front: tuple[FrontPoint, ...]
    search: Search | None = None


def new_sweep(points: Sequence[Point], search: Search | None = None, *, output: Path | None = None) -> Path:
    """Make the folder of a sweep, with nothing done.

    Args:
        points: Its runs; of a search, what its trials have in common.
        search: What is looked for, if it is a search.
        output: The folder, instead of the next one in `sweeps/`.

    Raises:
        UsageError: It is there already, or a search lacks what proposes its trials.
    """
    if search is not None:
        first = next_trial(search, points[0], [])
        points = () if first is None else (first,)
    path = output or _next_folder(points)
    if path.exists():
        raise UsageError(
            f"{path} is there already", f"Go on with it: adaptify sweep --resume {path}; or choose another."
        )
    path.mkdir(parents=True)
    write_index(path, points, search)
    return path


def newest_stopped(sweeps: Path = SWEEPS) -> Path:
    """Return the newest sweep that was stopped.

    Raises:
        UsageError: There is none.
    """
    entries = sweeps.iterdir() if sweeps.is_dir() else ()
    found = [
        entry
        for entry in entries
        if (entry / INDEX).is_file()
        and folder.is_free(entry)
        and any(point.status == "open" for point in read_index(entry)[0])
    ]
    if not found:
        raise UsageError(
            f"no unfinished sweep in {sweeps}/",
            "Name the folder of one: adaptify sweep --resume FOLDER; what failed is tried again then.",
        )
    return max(found, key=folder.last_written)


def run_sweep(path: Path, *, progress: Progress = SILENT) -> Sweep:
    """Run all points of a sweep that are not done yet, and put what came of them side by side.

    What fails is noted with its reason, and the others go on.

    Args:
        path: The folder of the sweep.
        progress: Told how far it is.

    Raises:
        UsageError: The folder is no sweep, or another process is filling it.
        TargetError: Every point failed.
    """
    known, search = read_index(path)
    points = list(known)
    if search is not None and len(points) < search.trials:
        check_installed()
    with folder.locked(path):
        try:
            for index, point in enumerate(points):  # a search adds to them as it goes
                points[index] = _run(path, point, Within(progress, point.name))
                if search is not None and index == len(points) - 1:
                    coming = next_trial(search, points[0], points)
                    points += [] if coming is None else [coming]
                write_index(path, points, search)
        except BaseException:
            progress.note(f"unfinished: {path}\n  to go on: adaptify sweep --resume {path}")
            raise
        reports = [
            (point.name, read_report(path / point.name / folder.REPORT))
            for point in points
            if point.status == "done"
        ]
        if not reports:
            reasons = (f"{item.name}: {item.error}" for item in points)
            raise TargetError(
                "\n".join([f"none of {len(points)} runs succeeded", *reasons]),
                f"Once that is put right: adaptify sweep --resume {path}.",
            )
        if search is None:
            comparison = compare(reports)
            front = tuple(pareto_front(reports))
        else:
            judged = {point.name: point.held_out for point in points if point.held_out is not None}
            front = held_out_front(reports, judged)
            best = {point.run for point in front}
            comparison = compare(sorted(reports, key=lambda item: item[0] not in best))
            comparison = replace(comparison, notes=(*comparison.notes, _CHOSEN))
        write_comparison(comparison, path / PAGE)
        write_index(path, points, search, front)
    return Sweep(path, tuple(points), tuple(reports), comparison, front, search)


def _run(path: Path, point: Point, progress: Progress) -> Point:
    """Run a point, unless that is done; whatever goes wrong is an answer too."""
    target = path / point.name
    if (target / folder.REPORT).is_file():
        progress.note("done before")
        return _finished(point, target)
    chosen = ", ".join(f"{name}={value}" for name, value in point.settings.items())
    progress.note(f"begins: {chosen}" if chosen else "begins")
    try:
        run_part(point.command, point.resolved(), target, progress)
    except AdaptifyError as error:
        told = f"{error.message} {error.hint}".strip()
    except (RuntimeError, ValueError, OSError, MemoryError) as error:
        told = f"{type(error).__name__}: {error}"
    else:
        return _finished(point, target)
    progress.note(f"failed: {told}")
    return replace(point, status="failed", error=told)


def _finished(point: Point, target: Path) -> Point:
    """The point with what a search goes by, if it is of one."""
    if not point.settings:
        return replace(point, status="done", error="")
    seen = held_out(read_report(target / folder.REPORT))
    if seen is None:
        return replace(point, status="failed", error="its report says nothing of held-out images")
    return replace(point, status="done", error="", held_out=seen)


def _next_folder(points: Sequence[Point]) -> Path:
    stem = Path(points[0].recipe.model.checkpoint).stem.rpartition(":")[2]
    number = 1
    while (path := SWEEPS / f"{stem}-{number:03d}").exists():
        number += 1
    return path
