"""Recipes: everything a run needs to be made again, as checked settings.

A recipe is a YAML file with the sections below; `gates` and `train` are the method's own. Settings come
from the defaults, then the file, then the command line's options, then its `key=value` words.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    Field,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from adaptify.bounds import MOST_RECIPE, brief, read_text
from adaptify.errors import RecipeError, UsageError, did_you_mean
from adaptify.files import write_text
from adaptify.methods.base import Section, find_method
from adaptify.runtime.budget import Budget
from adaptify.settings import CoreDumper, CoreLoader

_Path = tuple[str, ...]


class ModelSection(Section):
    """Which network: the checkpoint, and its architecture where it cannot be found in the file.

    Attributes:
        checkpoint: A file, a run folder, or the name of an architecture, which starts from random weights.
        arch: `torchvision:NAME`, `timm:NAME`, `adaptify:NAME` or `package.module:callable`; None: found by
            the names and shapes of the tensors.
        arch_kwargs: Arguments of the architecture.
        trust_pickle: Whether code that the file names may be run.
    """

    checkpoint: str
    arch: str | None = None
    arch_kwargs: dict[str, Any] = Field(default_factory=dict)
    trust_pickle: bool = False


class DataSection(Section):
    """Which images, and how they are shown to the network.

    Attributes:
        source: FOLDER, `cifar10:FOLDER`, `cifar100:FOLDER`, `digits` or `fake:N`.
        holdout: Part of the training images that only the policy is chosen on.
        val_split: Part for reporting, for a folder without train/ and val/.
        input_size: Height and width, or None for the architecture's own.
        mean: Per channel, for pixels in [0, 1], or None for the architecture's own.
        std: Likewise.
        workers: Processes that decode images; None: by the cores.
        skip_corrupt: Whether unreadable images are left out, and do not refuse the data.
    """

    source: str
    holdout: float = Field(default=0.1, gt=0, lt=1)
    val_split: float | None = Field(default=None, gt=0, lt=1)
    input_size: tuple[PositiveInt, PositiveInt] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    workers: int | None = Field(default=None, ge=0)
    skip_corrupt: bool = False


class CalibrateSection(Section):
    """What the policy is chosen for; without any of these, a drop of at most 0.5 points.

    Attributes:
        max_drop: Points of top-1 that may be lost.
        max_macs: Fraction of the MACs that may be kept; or, from 1,000 on, MACs for a sample.
        thresholds: One per exit; null for an exit never taken.
        confidence: Probability with which `max_drop` holds for new samples; None: for the held-out ones.
        rule: How thresholds are looked for: by a search over all of them (`search`), or by giving each exit
            its share of the samples (`quota`, budgeted batch).
    """

    max_drop: float | None = Field(default=None, allow_inf_nan=False)
    max_macs: float | None = None
    thresholds: tuple[float | None, ...] | None = None
    confidence: float | None = Field(default=None, gt=0, lt=1)
    rule: Literal["search", "quota"] = "search"

    @field_validator("max_macs")
    @classmethod
    def _budget(cls, value: float | None) -> float | None:
        try:
            return value if value is None else Budget.of(value).amount
        except UsageError as error:
            raise ValueError(error.message) from error

    @field_validator("thresholds")
    @classmethod
    def _never(cls, value: tuple[float | None, ...] | None) -> tuple[float | None, ...] | None:
        if value is not None and any(item is not None and math.isnan(item) for item in value):
            raise ValueError("a threshold is not a number")
        return value and tuple(None if item == math.inf else item for item in value)

    @model_validator(mode="after")
    def _one_way(self) -> CalibrateSection:
        if self.thresholds is not None and (self.max_drop is not None or self.max_macs is not None):
            raise ValueError("thresholds by hand leave nothing to choose: drop max_drop and max_macs")
        if self.confidence is not None and self.max_drop is None:
            raise ValueError("confidence is about max_drop: give one")
        return self

    def request(self) -> dict[str, Any]:
        """What was asked for, the default filled in."""
        asked = self.model_dump(exclude_defaults=True, mode="json")
        aims = {"max_drop", "max_macs", "thresholds"}
        return asked if aims & set(asked) else {"max_drop": 0.5, **asked}

    @classmethod
    def settings(cls, request: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a request, by their keys in a recipe: it takes the place of the whole section."""
        return {
            f"calibrate.{name}": request.get(name, field.default) for name, field in cls.model_fields.items()
        }


class RunSection(Section):
    """How the work is done.

    Attributes:
        device: auto, cpu, cuda or cuda:N.
        batch_size: Images in a batch of the backbone.
        seed: Seed of everything random.
    """

    device: str = "auto"
    batch_size: int = Field(default=256, gt=0)
    seed: int = Field(default=0, ge=0, lt=1 << 63)


class PruneSection(Section):
    """How far `adaptify prune` goes.

    Attributes:
        target: Fraction of the MACs to keep; None: what learned gates leave.
        round_to: Multiple of channels to keep where layers are large enough; 1 for any number.
        finetune: Epochs of training after channels were removed.
    """

    target: float | None = Field(default=None, gt=0, le=1)
    round_to: int = Field(default=16, ge=1)
    finetune: int = Field(default=0, ge=0)


class Recipe(Section):
    """All settings of one run.

    Attributes:
        version: Of the format of recipes.
        method: The method, whose own sections `gates` and `train` are.
        model: Which network.
        data: Which images.
        gates: The gates of the method.
        train: How the method trains them.
        calibrate: What the policy is chosen for.
        prune: How far `adaptify prune` goes.
        run: How the work is done.
    """

    version: Literal[1] = 1
    method: str
    model: ModelSection
    data: DataSection
    gates: SerializeAsAny[Section]
    train: SerializeAsAny[Section]
    calibrate: CalibrateSection = CalibrateSection()
    prune: PruneSection = PruneSection()
    run: RunSection = RunSection()


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
    places: dict[_Path, str],
    options: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> Recipe:
    if "stages" in settings:
        raise RecipeError(
            f"{_place(('stages',), places)}the recipe has several stages",
            "Run it with: adaptify retrofit CKPT --recipe FILE.",
        )
    own = overrides.get("method") or method
    name = own or settings.get("method") or "dgate"
    where = "" if own else _place(("method",), places)
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
        raise _explain(error, schema, places) from error


@functools.cache
def recipe_type(method: str) -> type[Recipe]:
    """The schema of recipes for `method`."""
    kind = find_method(method)
    return create_model(
        "Recipe", __base__=Recipe, gates=(kind.Gates, kind.Gates()), train=(kind.Train, kind.Train())
    )


def known_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """All dotted keys of a schema."""
    keys: list[str] = []
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML that `resolve` reads back to an equal one."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=CoreDumper, sort_keys=False, allow_unicode=True)


def write_recipe(recipe: Recipe, path: str | os.PathLike[str]) -> None:
    """Write `dump_recipe(recipe)` to `path`, atomically."""
    write_text(path, dump_recipe(recipe))


def read_settings(file: Path) -> tuple[dict[str, Any], dict[_Path, str]]:
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
    places: dict[_Path, str] = {}
    _note_places(document, (), file, places)
    return {key: value for key, value in settings.items() if value is not None}, places


def _note_places(node: yaml.Node | None, path: _Path, file: Path, places: dict[_Path, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            mark = key.start_mark
            here = (*path, str(key.value))
            places[here] = f"{file}:{mark.line + 1}:{mark.column + 1} "
            _note_places(value, here, file, places)


def _place(path: _Path, places: Mapping[_Path, str]) -> str:
    for length in range(len(path), 0, -1):
        if path[:length] in places:
            return places[path[:length]]
    return ""


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


def _explain(error: ValidationError, schema: type[Recipe], places: Mapping[_Path, str]) -> RecipeError:
    # A key that is wrong may be why another one is missing: wrong ones come first.
    first = min(error.errors(include_url=False), key=lambda found: found["type"] == "missing")
    path = tuple(str(step) for step in first["loc"])
    key = ".".join(path)
    where = _place(path, places)
    keys = known_keys(schema)
    if first["type"] == "extra_forbidden":
        level = len(path)
        split = [known.split(".") for known in keys]
        siblings = dict.fromkeys(".".join(k[:level]) for k in split if k[: level - 1] == list(path[:-1]))
        return RecipeError(
            f"{where}{brief(key)}: unknown key{_meant(key[:100], siblings, keys)}",
            f"There are: {', '.join(siblings or keys)}.",
        )
    if first["type"] == "missing":
        key, hint = _MISSING.get(path[0], (key, "Add it to the recipe."))
        return RecipeError(f"{where}{key} is missing", hint)
    if ".".join(path[:-1]) in keys and isinstance(first["loc"][-1], str):
        key = ".".join(path[:-1])  # behind a key that takes values of several kinds: the name of a kind
    message = first["msg"].removeprefix("Value error, ")
    given = f", got {brief(repr(first['input']))}" if first["loc"] and first["type"] != "value_error" else ""
    is_list = isinstance(first["input"], str) and "," in first["input"]
    hint = f"If it is to be a list, write '{key}=[{first['input']}]'." if is_list else "Correct the value."
    return RecipeError(f"{where}{brief(key)}: {brief(message[:1].lower() + message[1:])}{given}", hint)


def _meant(key: str, siblings: Collection[str], keys: Collection[str]) -> str:
    """The key that was meant: one beside it, or one of a section that was left out (`epochs=3`)."""
    within = [known for known in keys if known.rpartition(".")[2] == key]
    return did_you_mean(key, siblings or keys) or (f"; did you mean '{within[0]}'?" if within else "")


# The one required key of each section.
_MISSING = {
    "data": ("data.source", "Say which images: --data FOLDER, cifar10:FOLDER, digits or fake:N."),
    "model": ("model.checkpoint", "Name the checkpoint: adaptify retrofit CKPT."),
}
