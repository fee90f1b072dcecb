"""Every command in the documentation is one that there is; those of the tutorial are run."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer
from documents import PAGES, ROOT, Shown, commands_of, unknown_keys

from adaptify.cli.main import main
from adaptify.errors import RecipeError
from adaptify.methods import base
from adaptify.recipe_library import recipe_names

SHOWN = [shown for page in PAGES for shown in commands_of(page)]
USAGE = typer.BadParameter.__mro__[1]  # of the click that typer uses
TUTORIAL = ROOT / "docs" / "tutorial.md"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    """The method that extending.md adds is installed."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples" / "random_exit"))
    monkeypatch.setattr(base, "_METHODS", dict(base._METHODS))
    base.register(importlib.import_module("random_exit").RandomExit)


def names(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z]{3,}", text))


def test_the_documentation_shows_commands() -> None:
    assert len(SHOWN) > 50
    assert {shown.words[0] for shown in SHOWN} >= {
        "demo",
        "inspect",
        "retrofit",
        "prune",
        "calibrate",
        "bench",
    }


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize("shown", SHOWN, ids=str)
def test_every_command_can_be_parsed(shown: Shown) -> None:
    assert unknown_keys(shown.words) == set()  # and nothing that the command line would refuse


@pytest.mark.parametrize(
    ("words", "kind", "told"),
    [
        ("retrofit model.pth --no-such-option 1", USAGE, "--no-such-option"),
        ("retrofit model.pth --max-drop much", USAGE, "valid number"),
        ("retrofit model.pth --method dgate train.epoch=3", RecipeError, "train.epoch: unknown key"),
        ("retrofit model.pth -r dgate/resnet56_cifar10 gates.pool=0", RecipeError, "gates.pool"),
        ("calibrate one two", USAGE, "two"),
        ("recipes sho dgate", KeyError, "sho"),
    ],
)
def test_a_command_that_is_wrong_would_be_found(words: str, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        unknown_keys(tuple(shlex.split(words)))


def test_a_setting_that_no_method_has_would_be_found() -> None:
    assert unknown_keys(("prune", "runs/one", "train.lrr=1", "train.lr=1")) == {"train.lrr"}


@pytest.mark.slow
def test_the_tutorial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for shown in commands_of(TUTORIAL):
        assert main(list(shown.words)) == 0, shown
        said = capsys.readouterr()
        # Figures differ between machines; titles, columns and names do not.
        assert names(" ".join(shown.output)) <= names(said.out + said.err), shown
    blocks = re.findall(r"^```python\n(.*?)^```$", TUTORIAL.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})


@pytest.mark.parametrize("method", [name for name in base.method_names() if name != "random_exit"])
def test_every_method_has_a_guide_with_all_parts(method: str) -> None:
    text = (ROOT / "docs" / "methods" / f"{method}.md").read_text(encoding="utf-8")
    for part in ("## When to use it", "## What to expect", "## Limits"):
        assert part in text
    recipes = [recipe for recipe in recipe_names() if recipe.startswith(f"{method}/")]
    assert not recipes or any(recipe in text for recipe in recipes)
