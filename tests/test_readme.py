"""The README's commands are run here, and its first two are what CI does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from adaptify.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def set_up() -> list[str]:
    return blocks("sh", README.split("## Set-up\n")[1].split("\n## ")[0])


def walk_through() -> list[tuple[str, list[str]]]:
    """Each command with the lines that the README shows of its output."""
    found = []
    for block in blocks("console"):
        command, *shown = block.splitlines()
        assert command.startswith("$ adaptify ")
        found.append((command.removeprefix("$ adaptify "), shown))
    return found


def words(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z]{3,}", text))


def test_there_are_two_set_up_commands_of_one_line() -> None:
    assert blocks("sh") == set_up()
    assert [block.count("\n") for block in set_up()] == [1, 1]
    assert [block.split()[-2:] for block in set_up()] == [
        [".venv/bin/adaptify", "demo"],
        ["&&", ".venv/bin/pytest"],
    ]


def test_ci_takes_the_steps_of_the_second_one_in_their_order() -> None:
    steps = [step.strip() for step in set_up()[1].split("&&")]
    expected = [re.sub(r"\.venv/bin/(\w+)", r'"$venv/bin/\1"', step) for step in steps]
    expected = [re.sub(r"\.venv$", '"$venv"', step) for step in expected]
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line.removesuffix(" || failed=1") for line in lines]
    places = [commands.index(step) for step in expected]
    assert places == sorted(places)
    assert lines[-1] == 'exit "$failed"'


def test_the_walk_through_goes_from_inspect_to_prune() -> None:
    commands = [command.split()[0] for command, _ in walk_through()]
    assert commands == ["inspect", "retrofit", "calibrate", "evaluate", "report", "prune"]


def test_links_lead_to_files() -> None:
    for file in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)", file.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (file.parent / target).is_file(), f"{file}: {target}"


@pytest.mark.slow
def test_commands_and_python_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert set_up()[0].split("&& ")[-1].strip() == ".venv/bin/adaptify demo"
    assert main(["demo"]) == 0
    capsys.readouterr()
    for command, shown in walk_through():
        assert main(shlex.split(command)) == 0
        output = capsys.readouterr().out
        # Figures differ between machines; titles, columns and names do not.
        assert words(" ".join(shown)) <= words(output), command
    (code,) = blocks("python")
    names: dict[str, object] = {}
    exec(code, names)
    assert getattr(names["logits"], "shape", None) == (8, 10)
    assert (tmp_path / "mine.safetensors").is_file()
