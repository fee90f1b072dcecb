"""What a shell offers after TAB: runs, recipes, methods, architectures, data.

A shell asks at every TAB, and torch takes seconds to import: names are read from folders, sources and
metadata, and a test holds them to what the registries say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from adaptify.cli.runs import RUNS

_METHOD = re.compile(
    r'^@register\nclass .*?^    name = "(\w+)"\n    summary = "([^"]*)"', re.MULTILINE | re.DOTALL
)
_OWN = re.compile(r'^    "(\w+)": \(', re.MULTILINE)
_REGISTERED = re.compile(r"^@register_model(?:\(.*\))?\n(?:@.*\n)*def ([a-z]\w*)", re.MULTILINE)
_PACKAGE = Path(__file__).parents[1]
_DATA = ("digits", "cifar10:", "cifar100:", "fake:")


def runs(incomplete: str) -> list[str]:
    """Return the finished runs in runs/; where none fits, the shell goes on with files."""
    names = sorted(file.parent.name for file in RUNS.glob("*/report.json"))
    return [f"{RUNS}/{name}" for name in names if f"{RUNS}/{name}".startswith(incomplete)] + [
        name for name in names if incomplete and name.startswith(incomplete)
    ]


def recipes(incomplete: str) -> list[str]:
    """Return the recipes that come with adaptify."""
    from adaptify.recipe_library import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


def methods(incomplete: str) -> list[tuple[str, str]]:
    """Return the methods with what they do: those of adaptify and of installed packages."""
    from importlib.metadata import entry_points

    folder = _PACKAGE / "methods"
    found = [pair for file in sorted(folder.glob("*.py")) for pair in _METHOD.findall(_text(file))]
    found += [(point.name, point.value) for point in entry_points(group="adaptify.methods")]
    return [(name, summary) for name, summary in found if name.startswith(incomplete)]


def architectures(incomplete: str) -> list[str]:
    """Return the names of networks: with their prefix where one is typed, else bare ones too."""
    prefix, colon, rest = incomplete.partition(":")
    if colon:
        return [f"{prefix}:{name}" for name in _networks(prefix) if name.startswith(rest)]
    sources = [f"{source}:" for source in ("adaptify", "torchvision", "timm") if source.startswith(prefix)]
    # Bash takes a colon for the end of a word: the names behind it are completed by themselves.
    bare = [name for name in (*_networks("adaptify"), *_networks("torchvision")) if name.startswith(prefix)]
    return [*sources, *(bare if prefix else ())]


def data(incomplete: str) -> list[str]:
    """Return the short names of data sets; where none fits, the shell goes on with folders."""
    return [name for name in _DATA if name.startswith(incomplete)] if incomplete else []


def _networks(prefix: str) -> Iterator[str]:
    if prefix == "adaptify":
        yield from _OWN.findall(_text(_PACKAGE / "models" / "own.py"))
        return
    spec = find_spec(prefix) if prefix in ("torchvision", "timm") else None
    if spec is not None and spec.origin is not None:
        for file in sorted((Path(spec.origin).parent / "models").glob("*.py")):
            yield from _REGISTERED.findall(_text(file))


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")
