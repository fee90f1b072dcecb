"""Recipe files: their settings, and where in the file each of them stands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from adaptify.bounds import MOST_RECIPE, brief, read_text
from adaptify.errors import RecipeError
from adaptify.settings import CoreLoader

KeyPath = tuple[str, ...]
Places = dict[KeyPath, str]  # what a message about the key begins with, as "file:line:column "


def read_settings(file: Path) -> tuple[dict[str, Any], Places]:
    """Settings of a YAML file, and for each key where it stands, as "file:line:column "."""
    try:
        text = read_text(file, MOST_RECIPE)
        document = yaml.compose(text, Loader=CoreLoader)
        settings = yaml.load(text, Loader=CoreLoader)
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {file}: {error.strerror}", "Check its name.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # not UTF-8, a number that is none, ...
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = brief(getattr(error, "problem", None) or f"not YAML text ({error})")
        raise RecipeError(
            f"{file}{where}: {problem}", "A recipe is YAML: key: value, indented by section."
        ) from error
    if not isinstance(settings, dict):
        raise RecipeError(
            f"{file} is no recipe: it holds no sections", "See the recipe.yaml of any run folder."
        )
    for key in settings:
        if not isinstance(key, str):
            raise RecipeError(
                f"{file}: {brief(repr(key))} is no name of a section", "Quote it, or remove it."
            )
    places: Places = {}
    _note_places(document, (), file, places)
    return {key: value for key, value in settings.items() if value is not None}, places


def _note_places(node: yaml.Node | None, path: KeyPath, file: Path, places: Places) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            mark = key.start_mark
            here = (*path, str(key.value))
            places[here] = f"{file}:{mark.line + 1}:{mark.column + 1} "
            _note_places(value, here, file, places)


def place_of(path: KeyPath, places: Mapping[KeyPath, str]) -> str:
    """Where a key stands, or the section that should hold it; empty for what is from no file."""
    for length in range(len(path), 0, -1):
        if path[:length] in places:
            return places[path[:length]]
    return ""
