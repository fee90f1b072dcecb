"""`adaptify recipes`: what is listed, shown, copied, and found wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Cli, snapshot

from adaptify.recipe_library import FOLDER, recipe_names

NAME = "dgate/resnet20_cifar10"
SHIPPED = (FOLDER / f"{NAME}.yaml").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_alone_it_explains_itself(cli: Cli) -> None:
    said = cli("recipes")
    assert (said.code, said.err) == (0, "")
    assert said.out == cli("recipes", "--help").out
    assert all(f"  {command}  " in said.out for command in ("ls", "show", "cp", "validate"))


def test_recipes_are_listed(cli: Cli) -> None:
    said = cli("recipes", "ls")
    assert said.code == 0
    lines = said.out.splitlines()
    assert [line.split()[0] for line in lines[::2]] == list(recipe_names())
    row = lines.index(f"{NAME}  dgate, adaptify:cifar_resnet20")
    assert lines[row + 1] == f"  {SHIPPED.splitlines()[0].removeprefix('# ')}"


def test_recipes_are_listed_for_programs(cli: Cli) -> None:
    listed = {row["name"]: row for row in cli("recipes", "ls", "--json").json}
    assert tuple(listed) == recipe_names()
    assert listed[NAME] == {
        "name": NAME,
        "method": "dgate",
        "model": "adaptify:cifar_resnet20",
        "summary": SHIPPED.splitlines()[0].removeprefix("# "),
    }


@pytest.mark.parametrize("name", [NAME, f"{NAME}.yaml"])
def test_a_recipe_is_shown_as_it_is_shipped(name: str, cli: Cli) -> None:
    said = cli("recipes", "show", name)
    assert (said.code, said.out, said.err) == (0, SHIPPED, "")


def test_a_recipe_is_copied_and_never_over_another_file(here: Path, cli: Cli) -> None:
    assert cli("recipes", "cp", NAME).code == 0
    own = Path("resnet20_cifar10.yaml")
    assert own.read_text() == SHIPPED
    own.write_text("mine")
    before = snapshot(here)
    said = cli("recipes", "cp", NAME)
    assert said.code == 2
    assert "resnet20_cifar10.yaml is there already" in said.err
    assert snapshot(here) == before
    assert cli("recipes", "cp", NAME, "--force").code == 0
    assert own.read_text() == SHIPPED


def test_a_recipe_is_copied_to_a_file_or_a_folder(cli: Cli) -> None:
    assert cli("recipes", "cp", NAME, "mine.yaml").code == 0
    Path("folder").mkdir()
    assert cli("recipes", "cp", NAME, "folder").code == 0
    assert Path("mine.yaml").read_text() == Path("folder/resnet20_cifar10.yaml").read_text() == SHIPPED


def test_what_was_copied_is_valid(cli: Cli) -> None:
    assert cli("recipes", "cp", NAME, "mine.yaml").code == 0
    said = cli("recipes", "validate", "mine.yaml", NAME, "train.epochs=40")
    assert (said.code, said.out, said.err) == (0, f"mine.yaml: OK\n{NAME}: OK\n", "")


def test_every_wrong_recipe_is_told_with_its_place(here: Path, cli: Cli) -> None:
    Path("key.yaml").write_text("method: dgate\ntrain:\n  lrr: 0.1\n")
    Path("value.yaml").write_text("method: dgate\ngates:\n  pool: many\n")
    said = cli("recipes", "validate", "key.yaml", NAME, "value.yaml")
    assert said.code == 3
    assert said.out == f"{NAME}: OK\n"
    assert said.err.startswith(
        "error: key.yaml:3:3 train.lrr: unknown key; did you mean 'train.lr'?\n  There are: "
    )
    assert "\n  value.yaml:3:3 gates.pool: " in said.err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["show", "dgate/resnet20_cifar"], 3, f"did you mean '{NAME}'?"),
        (["cp", "dgate/resnet20_cifar"], 3, f"did you mean '{NAME}'?"),
        (["validate", "dgate/resnet20_cifar"], 3, f"did you mean '{NAME}'?"),
        (["validate", NAME, "train.lrr=1"], 3, "train.lrr: unknown key; did you mean 'train.lr'?"),
        (["validate", NAME, "train.epochs=many"], 3, "train.epochs: "),
        (["validate", NAME, "method=dgat"], 3, "unknown method 'dgat'; did you mean 'dgate'"),
        (["validate", "train.lr=1"], 2, "no recipe to check"),
        (["validate"], 2, "FILE_OR_NAME"),
        (["shwo", NAME], 2, "unknown command 'shwo'; did you mean 'show'?\n  `adaptify recipes --help`"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    words: list[str], code: int, told: str, here: Path, cli: Cli
) -> None:
    said = cli("recipes", *words)
    assert (said.code, said.out) == (code, "")
    assert told in said.err
    assert snapshot(here) == {}
