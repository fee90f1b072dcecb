"""`sweep`: several methods and targets on one checkpoint, side by side.

A sweep is a folder with a run folder for each point, and `sweep.json`, which says what there is to do and
what came of it. A point whose run folder is there is done: a sweep that was stopped goes on with the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from adaptify.bounds import brief, parse_json, read_text
from adaptify.errors import AdaptifyError, TargetError, UsageError
from adaptify.files import write_text
from adaptify.methods import JudgingMethod, find_method, method_names
from adaptify.pipeline import folder
from adaptify.pipeline.part_run import Command, Within, run_part
from adaptify.progress import SILENT, Progress
from adaptify.recipe import Recipe, recipe_type, resolve
from adaptify.reports.compare import Comparison, compare
from adaptify.reports.compare_html import write_comparison
from adaptify.reports.pareto import FrontPoint, pareto_front
from adaptify.reports.schema import Report, read_report
from adaptify.version import VERSION

SWEEPS = Path("sweeps")
INDEX = "sweep.json"
PAGE = "sweep.html"
_FORMAT, _VERSION = "adaptify.sweep", 1

Status = Literal["open", "done", "failed"]


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        name: The name of its folder.
        command: What it is a run of.
        recipe: Its settings.
        status: What became of it.
        error: Why it failed, and what to do.
    """

    name: str
    command: Command
    recipe: Recipe
    status: Status = "open"
    error: str = ""


@dataclass(frozen=True)
class Sweep:
    """What came of a sweep.

    Attributes:
        folder: Where it is.
        points: Its points.
        reports: Name and report of each that succeeded.
        comparison: They side by side.
        front: The operating points of all that no other one beats.
    """

    folder: Path
    points: tuple[Point, ...]
    reports: tuple[tuple[str, Report], ...]
    comparison: Comparison
    front: tuple[FrontPoint, ...]


def plan_points(
    methods: Sequence[str],
    targets: Sequence[float],
    options: Mapping[str, Any],
    overrides: Mapping[str, Any] = {},
) -> tuple[Point, ...]:
    """Return the runs that methods and targets come to.

    A method that judges channels prunes to each target, and one that is trained towards a part of the MACs is
    trained towards each; others, as most with exits, have all budgets on the frontier of a single run.

    Args:
        methods: Names of methods.
        targets: Fractions of the MACs.
        options: Dotted key -> value, for all of them.
        overrides: The same; with the name of a method before it (`dgate.train.epochs`), for that one.

    Raises:
        UsageError, RecipeError: A method or a setting is unknown, or a target is missing.
    """
    own = {name: _own(name, overrides) for name in methods}
    shared = {key: value for key, value in overrides.items() if key.partition(".")[0] not in method_names()}
    points: list[Point] = []
    for name in dict.fromkeys(methods):
        kind = find_method(name)
        judges = issubclass(kind, JudgingMethod)
        key = "prune.target" if judges else "train.target"
        if judges and not targets:
            raise UsageError(f"{name} prunes to a target, and there is none", "Give some: --target 0.4,0.6.")
        aimed = judges or "target" in kind.Train.model_fields
        for target in targets if aimed and targets else [None]:
            settings = {**options, **({} if target is None else {key: target})}
            recipe = resolve(name, options=settings, overrides={**shared, **own[name]})
            label = name if target is None else f"{name}-{target:g}"
            points.append(Point(label, "prune" if judges else "retrofit", recipe))
    return tuple(points)


def new_sweep(points: Sequence[Point], *, output: Path | None = None) -> Path:
    """Make the folder of a sweep, with nothing done.

    Raises:
        UsageError: It is there already.
    """
    path = output or _next_folder(points)
    if path.exists():
        raise UsageError(
            f"{path} is there already", f"Go on with it: adaptify sweep --resume {path}; or choose another."
        )
    path.mkdir(parents=True)
    _write(path, points)
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
        and any(point.status == "open" for point in read_points(entry))
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
    points = list(read_points(path))
    with folder.locked(path):
        try:
            for index, point in enumerate(points):
                points[index] = _run(path, point, Within(progress, point.name))
                _write(path, points)
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
        comparison = compare(reports)
        front = tuple(pareto_front(reports))
        write_comparison(comparison, path / PAGE)
        _write(path, points, front)
    return Sweep(path, tuple(points), tuple(reports), comparison, front)


def _run(path: Path, point: Point, progress: Progress) -> Point:
    """Run a point, unless that is done; whatever goes wrong is an answer too."""
    target = path / point.name
    if (target / folder.REPORT).is_file():
        progress.note("done before")
        return replace(point, status="done", error="")
    progress.note("begins")
    try:
        run_part(point.command, point.recipe, target, progress)
    except AdaptifyError as error:
        told = f"{error.message} {error.hint}".strip()
    except (RuntimeError, ValueError, OSError, MemoryError) as error:
        told = f"{type(error).__name__}: {error}"
    else:
        return replace(point, status="done", error="")
    progress.note(f"failed: {told}")
    return replace(point, status="failed", error=told)


def _own(method: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    prefix = f"{method}."
    return {key.removeprefix(prefix): value for key, value in overrides.items() if key.startswith(prefix)}


def _next_folder(points: Sequence[Point]) -> Path:
    stem = Path(points[0].recipe.model.checkpoint).stem.rpartition(":")[2]
    number = 1
    while (path := SWEEPS / f"{stem}-{number:03d}").exists():
        number += 1
    return path


def _write(path: Path, points: Sequence[Point], front: Sequence[FrontPoint] = ()) -> None:
    value = {
        "format": _FORMAT,
        "version": _VERSION,
        "adaptify": VERSION,
        "points": [
            {
                "name": point.name,
                "command": point.command,
                "status": point.status,
                "error": point.error,
                "recipe": point.recipe.model_dump(mode="json"),
            }
            for point in points
        ],
        "front": [point.to_json() for point in front],
    }
    write_text(path / INDEX, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_points(path: Path) -> tuple[Point, ...]:
    """Read what a sweep is to do, and what came of it.

    Raises:
        UsageError: The folder is no sweep, or its `sweep.json` is damaged.
    """
    file = path / INDEX
    if not file.is_file():
        raise UsageError(f"{path} is no sweep: it has no {INDEX}", "Name the folder of one, as in sweeps/.")
    try:
        value = parse_json(read_text(file))
        version = value.get("version")
        if isinstance(version, int) and version > _VERSION:
            raise UsageError(
                f"{file} has version {version}; this adaptify reads version {_VERSION}", "Update adaptify."
            )
        return tuple(_point(item) for item in value["points"])
    except (OSError, ValueError, AttributeError, KeyError, TypeError, ValidationError) as error:
        raise UsageError(f"{file} is damaged: {brief(error)}", "Start anew.") from error


def _point(item: Mapping[str, Any]) -> Point:
    name, command = str(item["name"]), item["command"]
    if Path(name).name != name or name.startswith(".") or command not in ("retrofit", "prune"):
        raise ValueError(f"a point is called {name!r}, and a run of {command!r}")
    recipe = recipe_type(str(item["recipe"]["method"])).model_validate(item["recipe"])
    return Point(name, command, recipe, item["status"], str(item["error"]))
