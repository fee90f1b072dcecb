"""The settings of `adaptify prune`: what is pruned decides which method and which recipe there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptify.recipe import Recipe as Settings


def resolve_settings(
    checkpoint: str | None,
    method: str | None,
    importance: str | None,
    recipe: Path | None,
    options: dict[str, Any],
    overrides: dict[str, Any],
) -> Settings:
    """Put the settings together: a run brings its own, and a checkpoint without data can only be judged.

    Args:
        checkpoint: What to prune; None: the newest run, or what the recipe names.
        method: As it was given.
        importance: Likewise.
        recipe: Likewise.
        options: Dotted key -> value, from options.
        overrides: Dotted key -> value, from words.

    Raises:
        UsageError, RecipeError: The settings do not go together, or there is nothing to prune.
    """
    from adaptify.cli.runs import find_target

    method, judged_by = judging(method, importance)
    options = options | judged_by
    found = None
    if recipe is None or checkpoint is not None:
        found = find_target(Path(checkpoint) if checkpoint is not None else None)
        options["model.checkpoint"] = str(found)

    # Not before the arguments are known to be right: what comes with these takes seconds to import.
    from adaptify.pipeline.choosing import has_gates
    from adaptify.pipeline.folder import RECIPE
    from adaptify.recipe import resolve
    from adaptify.recipe_library import find_recipe

    if recipe is not None or found is None:
        return _towards_target(method, find_recipe(recipe) if recipe else None, options, overrides)
    if method is None and has_gates(found):
        own = found / RECIPE
        if own.is_file():
            return resolve(None, file=own, options=options, overrides=overrides)
        method = "gumbel"
    options.setdefault("data.source", "")
    learns = bool(overrides.get("data.source", options["data.source"]))
    return _towards_target(method or ("gumbel" if learns else "importance"), None, options, overrides)


def judging(method: str | None, importance: str | None) -> tuple[str | None, dict[str, Any]]:
    """The method and the settings that --importance stands for, or the method as it was given.

    Raises:
        UsageError: Both are given, and do not agree.
    """
    from adaptify.errors import UsageError

    if importance is None:
        return method, {}
    if method not in (None, "importance"):
        raise UsageError(
            f"--importance {importance} does not go with --method {method}", "Give one of the two."
        )
    return "importance", {"gates.criterion": importance}


def _towards_target(
    method: str | None, file: Path | None, options: dict[str, Any], overrides: dict[str, Any]
) -> Settings:
    """Put the settings together; a method that is trained towards a target is given the one of --target."""
    from adaptify.recipe import resolve

    settings = resolve(method, file=file, options=options, overrides=overrides)
    if "prune.target" not in {**options, **overrides} or not hasattr(settings.train, "target"):
        return settings
    aim = {"train.target": settings.prune.target}
    return resolve(method, file=file, options={**options, **aim}, overrides=overrides)
