from __future__ import annotations

import doctest

import pytest

from adaptify import settings, text
from adaptify.cli import progress
from adaptify.reports import svg


@pytest.mark.parametrize("module", [text, svg, progress, settings])
def test_the_examples_in_the_docstrings_hold(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", ["cat", "Katze, große", "猫", "a\u200db", "100%", ""])
def test_ordinary_names_stay_as_they_are(name: str) -> None:
    assert text.printable(name) == name


@pytest.mark.parametrize("mark", ["\x1b", "\n", "\r", "\x00", "\x9b", "\u202e", "\u2028", "\udcff"])
def test_marks_that_drive_a_terminal_are_written_out(mark: str) -> None:
    shown = text.printable(f"a{mark}b")
    assert mark not in shown
    assert shown.startswith("a\\")
    assert shown.encode("utf-8")
