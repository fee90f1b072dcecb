"""The import rule of docs/architecture.md: a room imports only rooms above it in the table there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "adaptify"
FACADE = "adaptify"  # the package itself: a view of all rooms, which no room imports
FILES = sorted(PACKAGE.rglob("*.py"))


def documented_rooms() -> list[str]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("| room | what it owns |")[1].split("\n\n")[0]
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


ORDER = {room: place for place, room in enumerate([*documented_rooms(), FACADE])}


def room_of(file: Path) -> str:
    first = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return FACADE if first in ("__init__", "__main__") else first


def imported_rooms(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and room of every import from adaptify, wherever in the module it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "adaptify":
            modules = [f"adaptify.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = ["." * node.level + (node.module or "")]
        else:
            continue
        for module in modules:
            assert not module.startswith("."), f"line {node.lineno}: a relative import"
            if module.partition(".")[0] == "adaptify":
                name = module.split(".")[1] if "." in module else FACADE
                yield node.lineno, name if name in ORDER else FACADE


def test_the_table_lists_every_room() -> None:
    assert set(ORDER) == {room_of(file) for file in FILES}


def test_rooms_import_only_rooms_above_them_in_the_table() -> None:
    violations = [
        f"{file.relative_to(ROOT)}:{line} ({room_of(file)}) imports {room}"
        for file in FILES
        for line, room in imported_rooms(ast.parse(file.read_text(encoding="utf-8")))
        if room != room_of(file) and ORDER[room] >= ORDER[room_of(file)]
    ]
    assert violations == []


@pytest.mark.parametrize(
    ("code", "room"),
    [
        ("import adaptify.cli.main", "cli"),
        ("from adaptify import artifact", "artifact"),
        ("from adaptify import load", FACADE),
        ("def f():\n    from adaptify.graph.trace import trace", "graph"),
        ("if TYPE_CHECKING:\n    from adaptify.reports.schema import Report", "reports"),
    ],
)
def test_every_kind_of_import_is_seen(code: str, room: str) -> None:
    assert [found for _, found in imported_rooms(ast.parse(code))] == [room]


def test_only_the_command_line_prints() -> None:
    calls = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in FILES
        if room_of(file) != "cli"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert calls == []


@pytest.mark.parametrize("module", ["adaptify", "adaptify.cli.main", "adaptify.recipe_library"])
def test_importing_is_light(module: str) -> None:
    script = f"import sys, {module}; print([name for name in ('torch', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_of_the_package_are_loaded_on_use() -> None:
    import adaptify

    for name in adaptify.__all__:
        assert getattr(adaptify, name).__name__.removeprefix("adaptify.") == name
        assert callable(getattr(adaptify, name))
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = adaptify.laod
