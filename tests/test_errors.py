"""Every error says what to do next, wherever it is raised."""

from __future__ import annotations

import ast
from pathlib import Path

import adaptify
from adaptify import errors

ROOT = Path(adaptify.__file__).parent
KINDS = {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.AdaptifyError)
}


def raised(source: str) -> list[tuple[int, str | None]]:
    """Line and hint of every error that `source` makes: its text, `...` for one that is computed, or None."""
    found: list[tuple[int, str | None]] = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", None))
        if name in KINDS:
            given = [*node.args[1:2], *(word.value for word in node.keywords if word.arg == "hint")]
            found.append((node.lineno, text(given[0]) if given else None))
    return found


def text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
    return "..."


def test_hints_are_found_however_they_are_given() -> None:
    lines = ["UsageError('a', 'Do b.')", "errors.ModelError('a', hint=f'Do {b}.')", "TargetError('a')"]
    assert raised("\n".join(lines)) == [(1, "Do b."), (2, "Do ...."), (3, None)]


def test_every_error_has_a_next_step() -> None:
    sites = {
        f"{file.relative_to(ROOT)}:{line}": hint
        for file in ROOT.rglob("*.py")
        for line, hint in raised(file.read_text(encoding="utf-8"))
    }
    assert len(sites) > 300
    # Two words at least, of which the first can begin a sentence: a hint is something to do.
    lacking = [place for place, hint in sites.items() if hint != "..." and len((hint or "").split()) < 2]
    assert lacking == []


def test_an_error_cannot_be_made_without_one() -> None:
    assert str(errors.UsageError("x is wrong", "Give y.")) == "x is wrong\nGive y."
