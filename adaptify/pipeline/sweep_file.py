"""`sweep.json`: what a sweep is to do, what came of it, and the front."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from adaptify.bounds import brief, parse_json, read_text, refuse_newer
from adaptify.errors import UsageError
from adaptify.files import write_text
from adaptify.pipeline.part_run import Command
from adaptify.pipeline.search import Search
from adaptify.recipe import Recipe, recipe_type, resolve
from adaptify.reports.pareto import FrontPoint
from adaptify.version import VERSION

INDEX = "sweep.json"
_FORMAT, _VERSION = "adaptify.sweep", 1

Status = Literal["open", "done", "failed"]


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        name: The name of its folder.
        command: What it is a run of.
        recipe: Its settings, before those that a search chose for it.
        settings: What a search chose for it: dotted key -> value.
        held_out: In a search: mean MACs and top-1 on held-out images, once it is done.
        status: What became of it.
        error: Why it failed, and what to do.
    """

    name: str
    command: Command
    recipe: Recipe
    settings: Mapping[str, Any] = field(default_factory=dict)
    held_out: tuple[float, float] | None = None
    status: Status = "open"
    error: str = ""

    def resolved(self) -> Recipe:
        """Return all of its settings.

        Raises:
            RecipeError: What a search chose does not go together.
        """
        if not self.settings:
            return self.recipe
        before = self.recipe.model_dump(mode="json")
        return resolve(self.recipe.method, options=before, overrides=self.settings)


def write_index(
    path: Path, points: Sequence[Point], search: Search | None = None, front: Sequence[FrontPoint] = ()
) -> None:
    """Write the `sweep.json` of the sweep in the folder `path`, atomically.

    Raises:
        OutsideError: It cannot be written.
    """
    value = {
        "format": _FORMAT,
        "version": _VERSION,
        "adaptify": VERSION,
        **({"search": {"trials": search.trials, "space": list(search.words)}} if search else {}),
        "points": [_to_json(point) for point in points],
        "front": [point.to_json() for point in front],
    }
    write_text(path / INDEX, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_index(path: Path) -> tuple[tuple[Point, ...], Search | None]:
    """Read what a sweep is to do, and what came of it; and what is looked for, if it is a search.

    Raises:
        UsageError: The folder is no sweep, or its `sweep.json` is damaged.
        RecipeError: What may be chosen does not fit the method.
    """
    file = path / INDEX
    if not file.is_file():
        raise UsageError(f"{path} is no sweep: it has no {INDEX}", "Name the folder of one, as in sweeps/.")
    try:
        value = parse_json(read_text(file))
        refuse_newer(value, _VERSION, file)
        points = tuple(_point(item) for item in value["points"])
        return points, _search(value.get("search"), points)
    except (OSError, ValueError, AttributeError, KeyError, TypeError, ValidationError) as error:
        raise UsageError(f"{file} is damaged: {brief(error)}", "Start anew.") from error


def _to_json(point: Point) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    if point.settings:
        seen = point.held_out
        chosen = {
            "settings": dict(point.settings),
            "held_out": None if seen is None else {"macs": seen[0], "accuracy": seen[1]},
        }
    return {
        "name": point.name,
        "command": point.command,
        "status": point.status,
        "error": point.error,
        "recipe": point.recipe.model_dump(mode="json"),
        **chosen,
    }


def _point(item: Mapping[str, Any]) -> Point:
    name, command = str(item["name"]), item["command"]
    if Path(name).name != name or name.startswith(".") or command not in ("retrofit", "prune"):
        raise ValueError(f"a point is called {name!r}, and a run of {command!r}")
    recipe = recipe_type(str(item["recipe"]["method"])).model_validate(item["recipe"])
    seen = item.get("held_out")
    return Point(
        name,
        command,
        recipe,
        settings=dict(item.get("settings", {})),
        held_out=None if seen is None else (float(seen["macs"]), float(seen["accuracy"])),
        status=item["status"],
        error=str(item["error"]),
    )


def _search(item: Mapping[str, Any] | None, points: Sequence[Point]) -> Search | None:
    if item is None:
        if any(point.settings for point in points):
            raise ValueError("settings were chosen, and nothing says from what")
        return None
    if not points:
        raise ValueError("a search has no trial")
    search = Search.of([str(word) for word in item["space"]], int(item["trials"]), type(points[0].recipe))
    for point in points:
        # What is not searched cannot be set here: who goes on has looked at the recipes alone.
        if point.settings.keys() != search.space.keys() or not all(
            search.space[key].holds(value) for key, value in point.settings.items()
        ):
            raise ValueError(f"{point.name} has settings that are not searched")
    return search
