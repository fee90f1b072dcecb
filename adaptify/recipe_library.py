"""The recipes that come with adaptify, by name: METHOD/MODEL_DATA, as in `dgate/resnet56_cifar10`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptify.errors import RecipeError, did_you_mean

_HERE = Path(__file__).parent
# Inside the package once it is installed; beside it in a checkout.
FOLDER = next((place for place in (_HERE / "recipes", _HERE.parent / "recipes") if place.is_dir()), _HERE)
_SUFFIX = ".yaml"


@dataclass(frozen=True)
class Listed:
    """A recipe that comes with adaptify, as a list shows it.

    Attributes:
        name: METHOD/MODEL_DATA.
        method: The method.
        model: The architecture.
        summary: The first line of its opening comment.
    """

    name: str
    method: str
    model: str
    summary: str


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with adaptify: METHOD/MODEL_DATA."""
    files = FOLDER.glob(f"*/*{_SUFFIX}")
    return tuple(sorted(file.relative_to(FOLDER).with_suffix("").as_posix() for file in files))


def find_recipe(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the file of a recipe that is named by its path, or by the name of one that comes with adaptify.

    A file that exists comes before a name.

    Raises:
        RecipeError: There is neither such a file nor such a name.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    names = recipe_names()
    wanted = path.as_posix().removesuffix(_SUFFIX)
    if wanted not in names:
        raise RecipeError(
            f"there is no recipe '{path}'{did_you_mean(wanted, names)}",
            "Name a YAML file, or one that comes with adaptify: `adaptify recipes ls` lists them.",
        )
    return FOLDER / f"{wanted}{_SUFFIX}"


def list_recipes() -> list[Listed]:
    """Return the recipes that come with adaptify, in the order of their names."""
    import yaml

    from adaptify.settings import CoreLoader

    listed = []
    for name in recipe_names():
        text = (FOLDER / f"{name}{_SUFFIX}").read_text(encoding="utf-8")
        settings = yaml.load(text, Loader=CoreLoader)  # a safe loader
        summary = text.partition("\n")[0].lstrip("# ").rstrip()
        method = " + ".join(_methods(settings))
        listed.append(Listed(name, method, settings["model"]["arch"], summary))
    return listed


def _methods(settings: Mapping[str, Any]) -> list[str]:
    """The method of a recipe, or those of its stages."""
    stages = settings.get("stages", [settings])
    return [stage.get("method", stage.get("command")) for stage in stages]
