"""The console blocks of the README and of docs/, read as a shell would."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from adaptify.cli.main import app
from adaptify.cli.values import file_and_words
from adaptify.methods import method_names
from adaptify.recipe import known_keys, recipe_type, resolve
from adaptify.recipe_library import find_recipe, recipe_names
from adaptify.settings import parse_overrides

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
ROOT_COMMAND: Any = typer.main.get_command(app)


@dataclass(frozen=True)
class Shown:
    """A command as a page shows it.

    Attributes:
        page: Where it stands.
        words: Its words, without `adaptify` in front and what is piped behind.
        output: The lines that are shown below it.
    """

    page: str
    words: tuple[str, ...]
    output: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: adaptify {shlex.join(self.words)}"


def commands_of(page: Path) -> list[Shown]:
    """The commands of a page in their order: `$ adaptify` in console blocks, `adaptify` in sh blocks."""
    name = page.relative_to(ROOT).as_posix()
    found = []
    for language, block in re.findall(r"^```(console|sh)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S):
        prompt = r"\$ adaptify " if language == "console" else r"adaptify "
        joined = block.replace("\\\n", " ")
        for command, rest in re.findall(rf"^{prompt}(.*)\n((?:(?!\$ |{prompt}).*\n)*)", joined, re.M):
            words = tuple(shlex.split(command, comments=True))
            pipe = words.index("|") if "|" in words else len(words)
            found.append(Shown(name, words[:pipe], tuple(rest.splitlines())))
    return found


def unknown_keys(words: tuple[str, ...]) -> set[str]:
    """Parse a command as the command line does, and its settings by the schema of its method; nothing is run.

    Returns:
        Keys of its settings that no method has, where the method is that of a run or of a file.

    Raises:
        Exception: What the command line would refuse.
    """
    command, rest = ROOT_COMMAND, list(words)
    while hasattr(command, "commands"):
        name = rest.pop(0)
        command = command.commands[name]
    given = command.make_context(name, rest).params
    if name not in ("retrofit", "prune"):
        return set()
    words_of = given.get("overrides") or given.get("words") or []
    _, settings = file_and_words(given["checkpoint"], list(words_of))
    if not settings:
        return set()
    overrides = parse_overrides(settings)
    recipe = str(given["recipe"]) if given["recipe"] else None
    if given["method"] or recipe in recipe_names():
        named = find_recipe(recipe) if recipe in recipe_names() else None
        stand_in = {"model.checkpoint": "model.pth", "data.source": "digits"}
        resolve(given["method"], file=named, options=stand_in, overrides=overrides)
        return set()
    return set(overrides) - {key for method in method_names() for key in known_keys(recipe_type(method))}
