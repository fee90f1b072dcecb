"""Unfinished runs: what a run notes when it begins, so that it can go on after it was stopped or killed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError

from adaptify.bounds import brief, parse_json, read_text, refuse_newer
from adaptify.data import Data
from adaptify.data.identity import state
from adaptify.environment import describe_environment
from adaptify.errors import RecipeError, UsageError
from adaptify.files import write_text
from adaptify.parallel import group
from adaptify.pipeline import folder
from adaptify.plan import Source
from adaptify.progress import Progress
from adaptify.recipe import Recipe, recipe_type, resolve, write_recipe
from adaptify.settings import Section
from adaptify.version import VERSION

BEGINNING_VERSION = 1

Command = Literal["retrofit", "prune"]


class Beginning(Section):
    """How a run began.

    Attributes:
        adaptify: The version that it began with.
        command: What it is a run of.
        force: Whether it replaces what has its name by then.
        recipe: All settings.
        source: The checkpoint, with its hash.
        data: The name of the data set, its classes, and how many images there are in each part.
        images: What the parts that are trained and chosen on hold, by `adaptify.data.identity.state`.
        machine: What decides how numbers are rounded.
    """

    format: Literal["adaptify.unfinished"] = "adaptify.unfinished"
    version: Literal[1] = 1
    adaptify: str = VERSION
    command: Command
    force: bool
    recipe: dict[str, Any]
    source: Source
    data: dict[str, Any]
    images: dict[str, str] = Field(default_factory=dict)
    machine: dict[str, Any]

    @classmethod
    def of(
        cls,
        command: Command,
        recipe: Recipe,
        source: Source,
        data: Data | None,
        device: torch.device,
        *,
        force: bool,
    ) -> Beginning:
        """What a run that begins now has to note."""
        described = data.describe() if data is not None else {}
        parts = {"train": data.train, "holdout": data.holdout} if data is not None else {}
        images = {part: found for part, split in parts.items() if (found := state(split)) is not None}
        described.pop("notes", None)
        facts = describe_environment()
        machine = {"torch": facts["versions"]["torch"], "device": str(device), "processes": group.size()}
        if device.type == "cuda":
            machine["gpus"] = facts["gpus"]
        else:
            machine |= {name: facts["cpu"][name] for name in ("model", "capability", "torch_threads")}
        return cls(
            command=command,
            force=force,
            recipe=recipe.model_dump(mode="json"),
            source=source,
            data=json.loads(json.dumps(described)),
            images=images,
            machine=json.loads(json.dumps(machine)),
        )


@dataclass(frozen=True)
class Unfinished:
    """A run that was stopped or killed.

    Attributes:
        folder: Where it is.
        beginning: How it began.
        recipe: Its settings.
    """

    folder: Path
    beginning: Beginning
    recipe: Recipe

    def check_settings(self, options: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
        """Make sure that the run is asked for as it began: by its recipe.yaml and by settings beside it.

        Raises:
            RecipeError: Something is different; the message shows what.
            UsageError: There is no recipe.yaml.
        """
        file = self.folder / folder.RECIPE
        if not file.is_file():
            raise UsageError(f"{file} is missing", "Start anew, without --resume.")
        asked = resolve(None, file=file, options=options, overrides=overrides)
        found = differences(self.beginning.recipe, asked.model_dump(mode="json"))
        if found:
            raise RecipeError(
                "\n".join([f"{self.folder} began with other settings", *found]),
                "Resume it with those that it began with, or start anew, without --resume.",
            )

    def check_start(self, now: Beginning, progress: Progress) -> None:
        """Make sure that checkpoint and images are those that the run began with.

        Another machine, or another version of torch, rounds otherwise: that is told of.

        Raises:
            UsageError: They are not; the message shows what is different.
        """
        before = self.beginning
        # Who named the file otherwise changed the recipe, which is told elsewhere.
        source = ({"checkpoint.sha256": item.source.sha256} for item in (before, now))
        for what, found in (
            ("checkpoint", differences(*source)),
            ("data set", differences(before.data, now.data) or _changed(before.images, now.images)),
        ):
            if found:
                raise UsageError(
                    "\n".join([f"the {what} is not the one that {self.folder} began with", *found]),
                    f"Bring the old {what} back, or start anew, without --resume.",
                )
        found = differences(before.machine, now.machine)
        if found:
            progress.note(
                "the run began on another machine, so weights may differ in their last bits from those of a "
                f"run that was never stopped ({'; '.join(found)})"
            )


def find_unfinished(given: Path | None, command: Command, runs: Path = folder.RUNS) -> Unfinished:
    """Return the unfinished run that was named, or the newest one.

    Args:
        given: Its folder, or that which it was to become, or the name of either in `runs`; None: the newest.
        command: What it must be a run of.
        runs: Folder of all runs.

    Raises:
        UsageError: There is none, it is finished, it is from a newer version, or its files are damaged.
    """
    if given is None:
        entries = list(runs.iterdir()) if runs.is_dir() else []
        found = [
            read_unfinished(entry)
            for entry in sorted(entries, key=folder.last_written)
            if folder.is_left(entry)
        ]
        found = [run for run in found if run.beginning.command == command]
        if not found:
            raise UsageError(
                f"no unfinished {command} in {runs}/",
                f"Name the folder of one: adaptify {command} --resume FOLDER. What is stopped in its first "
                "epoch leaves none.",
            )
        return found[-1]
    for path in (given, runs / given):
        left = sorted(folder.left_behind(path), key=folder.last_written)
        if (path / folder.UNFINISHED).is_file() and not (left or _is_finished(path)):
            left = [path]
        if left:
            run = read_unfinished(left[-1])
            if run.beginning.command != command:
                raise UsageError(
                    f"{left[-1]} is an unfinished {run.beginning.command}",
                    f"Resume it with: adaptify {run.beginning.command} --resume {left[-1]}",
                )
            return run
        if _is_finished(path):
            raise UsageError(
                f"{path} is finished", "There is nothing left to do; look at it: adaptify report."
            )
        if path.is_dir():
            raise UsageError(
                f"{path} is no unfinished run: it has no {folder.UNFINISHED}", "Start anew, without --resume."
            )
    raise UsageError(f"no unfinished run '{given}'", f"Name its folder, or none for the newest in {runs}/.")


@contextmanager
def new_run(
    stem: str,
    beginning: Beginning,
    recipe: Recipe,
    *,
    output: Path | None,
    resume: Unfinished | None,
    progress: Progress,
) -> Iterator[folder.NewRun]:
    """Make a run folder as `folder.new_run` does, from which the run can go on if it is stopped.

    Of several processes, the main one makes it. Each of the others fills a folder of its own, which goes.

    Raises:
        UsageError: The run that is to go on did not begin like this, or its folder cannot be filled.
    """
    if resume is not None:
        resume.check_start(beginning, progress)
    group.wait()  # none must look at a run that goes on when it is given its other name
    if not group.is_main():
        final = group.from_main(Path())
        with tempfile.TemporaryDirectory(prefix="adaptify-") as work:
            yield folder.NewRun(Path(work), final)
        return
    if group.size() > 1:
        progress.note(f"{group.size()} processes share the work")

    def tell(left: Path) -> None:
        progress.note(f"unfinished: {left}\n  to go on: adaptify {beginning.command} --resume {left}")

    resumed = resume.folder if resume is not None else None
    with folder.new_run(stem, output=output, force=beginning.force, resumed=resumed, left=tell) as run:
        write_recipe(recipe, run.work / folder.RECIPE)
        if resume is None:
            write_text(run.work / folder.UNFINISHED, beginning.model_dump_json(indent=1) + "\n")
        group.from_main(run.final)
        yield run


def begin_again(run: folder.NewRun, beginning: Beginning, recipe: Recipe) -> None:
    """Let a run go on from what it has trained, with other settings than those that it began with.

    Raises:
        OutsideError: The disk refuses it.
    """
    folder.strip(run.work)
    write_recipe(recipe, run.work / folder.RECIPE)
    now = beginning.model_copy(update={"recipe": recipe.model_dump(mode="json")})
    write_text(run.work / folder.UNFINISHED, now.model_dump_json(indent=1) + "\n")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is different in two values of JSON, one line each.

    >>> differences({"train": {"lr": 0.1, "epochs": 2}}, {"train": {"lr": 0.2, "epochs": 2}})
    ['train.lr: 0.1, now 0.2']
    """
    old, new = _flat(before), _flat(now)
    return [
        f"{key}: {_shown(old, key)}, now {_shown(new, key)}"
        for key in dict.fromkeys((*old, *new))
        if old.get(key, _Nothing) != new.get(key, _Nothing)
    ]


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Parts of a data set whose images are others, as many as they are; an older run has not noted them."""
    return [f"{part}: other images" for part in before if before[part] != now.get(part)]


class _Nothing:
    """What is not there."""


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = json.dumps(values[key], ensure_ascii=False) if key in values else "nothing"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _is_finished(path: Path) -> bool:
    return not path.name.startswith(".") and (path / folder.REPORT).is_file()


def read_unfinished(path: Path) -> Unfinished:
    """Read what an unfinished run noted in its folder when it began.

    Raises:
        UsageError: It is from a newer version, or damaged.
    """
    file = path / folder.UNFINISHED
    try:
        value = parse_json(read_text(file))
        refuse_newer(value, BEGINNING_VERSION, file)
        beginning = Beginning.model_validate(value)
        try:
            schema = recipe_type(str(beginning.recipe.get("method")))
        except UsageError as error:
            raise UsageError(f"{file} is damaged: {brief(error.message)}", error.hint) from error
        recipe = schema.model_validate(beginning.recipe)
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        raise UsageError(
            f"{file} is damaged: {brief(error)}",
            "Start anew: the same command without --resume.",
        ) from error
    return Unfinished(path, beginning, recipe)
