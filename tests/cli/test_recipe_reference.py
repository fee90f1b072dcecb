"""The recipe reference: complete, and the page in docs/ is what it prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from adaptify.cli.main import main
from adaptify.cli.reference import method_part, reference
from adaptify.methods import find_method, method_names
from adaptify.recipe import known_keys, recipe_type
from adaptify.settings import Section

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
OWN = tuple(name for name in method_names() if find_method(name).__module__.startswith("adaptify."))


def test_the_page_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(OWN), "adaptify recipes reference > docs/recipes.md"
    assert main(["recipes", "reference", "dgate"]) == 0
    assert capsys.readouterr().out == method_part("dgate")


@pytest.mark.parametrize("method", OWN)
def test_every_key_of_a_recipe_is_there_with_words(method: str) -> None:
    text = reference((method,))
    rows = {row[0]: row[1:] for row in re.findall(r"^\| `([\w.]+)` \| (.*?) \| (.*) \| (.*) \|$", text, re.M)}
    assert set(known_keys(recipe_type(method))) <= set(rows)
    assert [key for key, (*_, words) in rows.items() if len(words) < 4] == []


def test_kinds_defaults_and_bounds_are_those_of_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gates(Section):
        """What there is.

        Attributes:
            side: A side | of something,
                in two lines.
            kind: One of two.
            rates: Several.
        """

        side: int = Field(default=3, ge=1, lt=8)
        kind: Literal["a", "b"] | None = None
        rates: tuple[float, ...]

    method: Any = find_method("dgate")
    monkeypatch.setattr(method, "Gates", Gates)
    monkeypatch.setattr(method, "Train", Section)
    assert method_part("dgate").splitlines()[4:] == [
        "### gates",
        "",
        "What there is.",
        "",
        "| key | value | default | what it is |",
        "| --- | --- | --- | --- |",
        "| `gates.side` | whole number >= 1, < 8 | `3` | A side \\| of something, in two lines. |",
        '| `gates.kind` | `"a"`, `"b"`, or null | `null` | One of two. |',
        "| `gates.rates` | [number, ...] | **required** | Several. |",
        "",
        "### train",
        "",
        "No settings.",
    ]


def test_a_method_that_there_is_not_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "reference", "dgatte"]) == 2
    assert "did you mean 'dgate'" in capsys.readouterr().err
