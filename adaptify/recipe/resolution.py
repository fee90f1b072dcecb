"""From defaults, a file and the command line to one checked recipe, and back to a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from adaptify.errors import RecipeError, UsageError, did_you_mean
from adaptify.files import write_text
from adaptify.recipe.explain import explain
from adaptify.recipe.schema import Recipe, known_keys, recipe_type
from adaptify.recipe.source import Places, place_of, read_settings
from adaptify.settings import CoreDumper


def resolve(
    method: str | None,
    *,
    file: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] = {},
    overrides: Mapping[str, Any] = {},
) -> Recipe:
    """Put the settings of a run together and check them.

    Args:
        method: Name of the method, or None to take the file's.
        file: A recipe in YAML.
        options: Dotted key -> value, from the command line's options.
        overrides: Dotted key -> value, from its `key=value` words.

    Raises:
        RecipeError: An unknown key or method, a value of the wrong kind, or a file that is no recipe; it
            names the place.
        UsageError: The method is unknown, and not from the file.
    """
    settings, places = read_settings(Path(file)) if file is not None else ({}, {})
    return _resolved(method, settings, places, options, overrides)


def check(file: str | os.PathLike[str], overrides: Mapping[str, Any] = {}) -> Recipe:
    """Check a recipe by itself, and return it as it would be run.

    Recipes may leave the checkpoint and the data to the command line: where they do, the words CKPT and
    DATA stand for them. Neither is looked for.

    Args:
        file: A recipe in YAML.
        overrides: Dotted key -> value, as for `resolve`.

    Raises:
        RecipeError, UsageError: As `resolve` does.
    """
    settings, places = read_settings(Path(file))
    for section, key, word in (("model", "checkpoint", "CKPT"), ("data", "source", "DATA")):
        given = settings.setdefault(section, {})
        if isinstance(given, dict):
            given.setdefault(key, word)
    return _resolved(None, settings, places, {}, overrides)


def resolve_settings(method: str | None, settings: dict[str, Any]) -> Recipe:
    """The recipe that nested settings are, checked; see `resolve`.

    Raises:
        RecipeError, UsageError: As `resolve` does.
    """
    return _resolved(method, settings, {}, {}, {})


def _resolved(
    method: str | None,
    settings: dict[str, Any],
    places: Places,
    options: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> Recipe:
    if "stages" in settings:
        raise RecipeError(
            f"{place_of(('stages',), places)}the recipe has several stages",
            "Run it with: adaptify retrofit CKPT --recipe FILE.",
        )
    own = overrides.get("method") or method
    name = own or settings.get("method") or "dgate"
    where = "" if own else place_of(("method",), places)
    if not isinstance(name, str):
        raise RecipeError(f"{where}method is no name", "Write, for example: method: dgate")
    try:
        schema = recipe_type(name)
    except UsageError as error:
        if not where:
            raise
        raise RecipeError(f"{where}{error.message}", error.hint) from error
    settings["method"] = name
    for source in (options, overrides):
        for key, value in source.items():
            _set(settings, key, value, schema)
            places[tuple(key.split("."))] = ""  # it does not come from the file
    try:
        return schema.model_validate(settings)
    except ValidationError as error:
        raise explain(error, schema, places) from error


def _set(settings: dict[str, Any], key: str, value: Any, schema: type[Recipe]) -> None:
    *sections, last = key.split(".")
    section = settings
    for name in sections:
        inner = section.setdefault(name, {})
        if not isinstance(inner, dict):
            near = did_you_mean(key, known_keys(schema))
            raise RecipeError(f"{key}: unknown key{near}", f"'{name}' has no keys of its own.")
        section = inner
    section[last] = value


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML that `resolve` reads back to an equal one."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=CoreDumper, sort_keys=False, allow_unicode=True)


def write_recipe(recipe: Recipe, path: str | os.PathLike[str]) -> None:
    """Write `dump_recipe(recipe)` to `path`, atomically."""
    write_text(path, dump_recipe(recipe))
