"""The Python of the documentation, and the examples in the functions' own help."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import adaptify
from adaptify.cli import values

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_about_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = doctest.testfile(str(DOCS / "api.md"), module_relative=False, encoding="utf-8")
    assert found.attempted > 40
    assert found.failed == 0
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "net.pt2"}


def test_every_function_of_the_package_stands_in_the_page() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    functions = [name for name in adaptify.__all__ if name.islower()]
    assert [name for name in functions if f"`{name}(" not in text] == []


@pytest.mark.parametrize("module", [values.__name__, "adaptify.pipeline.unfinished", "adaptify.settings"])
def test_examples_in_docstrings_hold(module: str) -> None:
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0
    assert found.failed == 0
