"""Recipes of several stages, each on what the one before made: prune, then exits, then calibrate."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from adaptify.errors import RecipeError, did_you_mean
from adaptify.recipe import CalibrateSection, Recipe, read_settings, resolve_settings
from adaptify.settings import Section

Command = Literal["prune", "retrofit", "calibrate"]
COMMANDS: tuple[Command, ...] = ("prune", "retrofit", "calibrate")

_SHARED = ("version", "model", "data", "run")
_OWN = {
    "prune": ("method", "gates", "train", "prune"),
    "retrofit": ("method", "gates", "train", "calibrate"),
    "calibrate": ("calibrate",),
}
_STAGE = re.compile(r"stage(\d+)\.(.+)")


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        command: What it does.
        recipe: Its settings, with those that all stages share; for `calibrate`, none.
        request: What `calibrate` chooses by.
    """

    command: Command
    recipe: Recipe | None
    request: Mapping[str, Any]


class Stages(Section):
    """A recipe of several stages, as it is written and kept.

    Attributes:
        version: Of this format.
        model: Of the recipe of the first stage; the others work on what the one before made.
        data: Of the recipes of all stages.
        run: Likewise.
        stages: Of each: its command, and the sections of its recipe.
    """

    version: Literal[1] = 1
    model: dict[str, Any] = Field(default_factory=dict)
    data: dict[str, Any] = Field(default_factory=dict)
    run: dict[str, Any] = Field(default_factory=dict)
    stages: tuple[dict[str, Any], ...] = Field(min_length=1, max_length=64)

    def resolved(self) -> tuple[Stage, ...]:
        """Every stage with all of its settings, checked.

        Raises:
            RecipeError: A setting of a stage is wrong; the message names the stage.
        """
        return tuple(self._stage(number, given) for number, given in enumerate(self.stages, 1))

    def _stage(self, number: int, given: Mapping[str, Any]) -> Stage:
        command = given.get("command")
        if command not in COMMANDS:
            told = "there is no command" if command is None else f"unknown command {command!r}"
            raise RecipeError(
                f"stage {number}: {told}",
                f"Write one of: command: {', '.join(COMMANDS)}.",
            )
        own = {key: value for key, value in given.items() if key != "command"}
        for key in own:
            if key not in _OWN[command]:
                raise RecipeError(
                    f"stage {number} ({command}): unknown key '{key}'{did_you_mean(key, _OWN[command])}",
                    f"There are: {', '.join(_OWN[command])}. What all stages share stands outside of them.",
                )
        try:
            if command == "calibrate":
                if number == 1:
                    raise RecipeError(
                        "there is nothing to calibrate yet", "Let a stage with exits stand before it."
                    )
                request = CalibrateSection.model_validate(own.get("calibrate") or {}).request()
                return Stage(command, None, request)
            return Stage(command, self._recipe(command, own), {})
        except RecipeError as error:
            raise RecipeError(f"stage {number} ({command}): {error.message}", error.hint) from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, ("calibrate", *first["loc"])))
            raise RecipeError(
                f"stage {number} ({command}): {where}: {first['msg']}", "Correct the value."
            ) from error

    def _recipe(self, command: str, own: Mapping[str, Any]) -> Recipe:
        shared = self.model_dump(include={"model", "data", "run"})
        settings = copy.deepcopy(shared | dict(own))
        method = "importance" if command == "prune" and "method" not in own else None
        return resolve_settings(method, settings)


def read_stages(
    file: str | os.PathLike[str],
    options: Mapping[str, Any] = {},
    overrides: Mapping[str, Any] = {},
) -> Stages | None:
    """Read a recipe of several stages.

    Args:
        file: A recipe in YAML.
        options: Dotted key -> value, from the command line's options.
        overrides: Dotted key -> value, from its words: of what is shared (`data.source`), or of one stage
            (`stage2.train.epochs`).

    Returns:
        The stages, each checked; None if the recipe is of a single run.

    Raises:
        RecipeError: It cannot be read, or a setting is wrong.
    """
    settings, places = read_settings(Path(file))
    if "stages" not in settings:
        return None
    where = places.get(("stages",), f"{file} ")
    entries = settings["stages"]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RecipeError(f"{where}stages is no list of stages", "Write each as: - command: retrofit")
    for key in settings:
        if key not in (*_SHARED, "stages"):
            raise RecipeError(
                f"{places.get((key,), '')}{key} stands beside the stages",
                f"Put it into one of them; they share {', '.join(_SHARED[1:])}.",
            )
    settings.setdefault("model", {})
    for source in (options, overrides):
        for key, value in source.items():
            _set(settings, key, value)
    try:
        found = Stages.model_validate(settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RecipeError(
            f"{where}{'.'.join(map(str, first['loc']))}: {first['msg']}", "Correct the value."
        ) from error
    found.resolved()
    return found


def check_stages(file: str | os.PathLike[str], overrides: Mapping[str, Any] = {}) -> Stages | None:
    """Check a recipe of several stages by itself; neither checkpoint nor data is looked for.

    Raises:
        RecipeError: As `read_stages`.
    """
    settings, _ = read_settings(Path(file))
    given = {
        f"{section}.{key}": word
        for section, key, word in (("model", "checkpoint", "CKPT"), ("data", "source", "DATA"))
        if key not in (settings.get(section) or {})
    }
    return read_stages(file, given, overrides)


def _set(settings: dict[str, Any], key: str, value: Any) -> None:
    target = settings
    match = _STAGE.fullmatch(key)
    if match:
        number, key = int(match[1]), match[2]
        if not 1 <= number <= len(settings["stages"]):
            raise RecipeError(
                f"there is no stage {number}", f"The recipe has {len(settings['stages'])} stages."
            )
        target = settings["stages"][number - 1]
    elif key.partition(".")[0] not in _SHARED:
        raise RecipeError(
            f"{key}: of which stage?", f"Say which: stage1.{key}=..., or write it into the recipe."
        )
    *sections, last = key.split(".")
    for name in sections:
        target = target.setdefault(name, {})
        if not isinstance(target, dict):
            raise RecipeError(f"{key}: unknown key", f"'{name}' has no keys of its own.")
    target[last] = value
