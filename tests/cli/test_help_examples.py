"""The examples in the help of every command are run, for real, on handwritten digits."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli
from documents import ROOT_COMMAND

from adaptify.cli.main import main

LONG = ("demo", "retrofit", "prune", "bench", "export")


def commands(group: Any = ROOT_COMMAND, name: str = "adaptify") -> Iterator[tuple[str, Any]]:
    """Every command with all of its names."""
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


def examples(command: Any) -> list[str]:
    """The lines below `Examples:`."""
    _, _, rest = command.help.partition("Examples:\n")
    return [line.strip() for line in rest.partition("\n\n")[0].splitlines() if line.strip()]


EXAMPLES = [line for _, command in commands() for line in examples(command)]


def is_long(line: str) -> bool:
    """Whether it trains, or measures time."""
    return shlex.split(line)[1] in LONG and "--dry-run" not in line


def words_of(line: str) -> list[str]:
    """The words that adaptify gets from the shell, which expands runs/*."""
    words = shlex.split(re.split(r"\s[|>]\s", line)[0])
    return [
        name
        for word in words[1:]
        for name in (sorted(map(str, Path().glob(word))) if "/*" in word else [word])
    ]


def asked_of_json(line: str) -> set[str]:
    """The key of the command's JSON that the example goes on to ask for (`| jq .key`), if it does."""
    found = re.search(r"\| jq '?\.(?:\[\]\.)?(\w+)'?$", line)
    return {found[1]} if found else set()


def keys_of_json(line: str, out: str) -> set[str]:
    """The keys of what the command printed, or of the first of several; none where JSON is not asked for."""
    if not asked_of_json(line):
        return set()
    value = json.loads(out)
    return set(value[0] if isinstance(value, list) else value)


def test_every_command_has_examples_that_are_its_own() -> None:
    assert len(list(commands())) >= 15
    for name, command in commands():
        assert examples(command), name
        assert [line for line in examples(command) if not f"{line} ".startswith(f"{name} ")] == []


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(("name", "command"), list(commands()), ids=[name for name, _ in commands()])
def test_help_fits_the_terminal(
    name: str, command: Any, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERMINAL_WIDTH", str(width))
    assert main([*name.split()[1:], "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= min(width, 100)
    assert all(line in text for line in examples(command))  # in one piece, to be copied
    assert "..." not in text.partition("\n\n")[2].partition("\n")[0]


@pytest.mark.parametrize(
    "line",
    [
        # timm takes long to import.
        pytest.param(line, marks=pytest.mark.slow if "timm:" in line else ())
        for line in EXAMPLES
        if not is_long(line)
    ],
)
def test_a_quick_example_runs(line: str, stage: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stage)
    said = cli(*words_of(line))
    assert said.code == 0, said.err
    assert asked_of_json(line) <= keys_of_json(line, said.out)


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in EXAMPLES if is_long(line)])
def test_a_long_example_runs(line: str, trained: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    said = cli(*words_of(line))
    assert said.code == 0, said.err
    assert asked_of_json(line) <= keys_of_json(line, said.out)
