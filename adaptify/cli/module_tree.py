"""The modules of a network as a tree, with those that are the same shown once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.table import Table

from adaptify.cli.tables import table, word
from adaptify.pipeline.inspect import ModuleFacts
from adaptify.text import quantity, shape


@dataclass
class _Node:
    """A module with those in it; `last` is the name of the last of neighbours that are the same."""

    facts: ModuleFacts
    inside: list[_Node] = field(default_factory=list)
    last: str = ""
    count: int = 1

    @property
    def own_name(self) -> str:
        return self.facts.name.rpartition(".")[2]

    def looks(self) -> tuple[object, ...]:
        """What makes two modules the same to a reader."""
        facts = self.facts
        own = facts.type, facts.shape, facts.parameters, facts.macs
        return (*own, *((node.own_name, node.count, node.looks()) for node in self.inside))


def module_tree(modules: Sequence[ModuleFacts], depth: int | None, most: int, *, fold: bool) -> Table:
    """Return the tree.

    Args:
        modules: All modules that run, in the order of the tree, the network first.
        depth: Levels to show; None: as many as fit.
        most: Lines that fit.
        fold: Show neighbours that are the same once, each with its own figures.
    """
    root = _tree(modules)
    if fold:
        _fold(root)
    if depth is None:
        deepest = max(level for _, level in _walk(root))
        fits = (level for level in range(deepest, 1, -1) if len(list(_walk(root, level))) <= most)
        depth = next(fits, 1)
    rows = table(["module", "type", "output", "params", "MACs"], left=2)
    for node, level in _walk(root, depth):
        facts = node.facts
        name = node.own_name or "(the network)"
        if node.count > 1:
            name = f"{name}..{node.last} ({node.count} times)"
        hides = " ..." if level == depth and node.inside else ""
        rows.add_row(
            word("  " * level + name + hides),
            word(facts.type),
            "" if facts.shape is None else shape(facts.shape),
            quantity(facts.parameters) if facts.parameters else "",
            quantity(facts.macs) if facts.macs else "",
        )
    return rows


def _tree(modules: Sequence[ModuleFacts]) -> _Node:
    nodes = {facts.name: _Node(facts) for facts in modules}
    for name, node in nodes.items():
        if name:
            nodes[name.rpartition(".")[0]].inside.append(node)
    return nodes[""]


def _fold(node: _Node) -> None:
    """Put neighbours with numbers for names that are the same into the first of them, from the leaves up."""
    for inner in node.inside:
        _fold(inner)
    kept: list[_Node] = []
    for inner in node.inside:
        before = kept[-1] if kept else None
        alike = before is not None and inner.inside and _stem(inner) == _stem(before)
        if before is not None and alike and before.looks() == inner.looks():
            before.count += 1
            before.last = inner.own_name
        else:
            kept.append(inner)
    node.inside = kept


def _stem(node: _Node) -> str:
    """The name of a module without its number."""
    return node.own_name.rstrip("0123456789")


def _walk(node: _Node, depth: int | None = None, level: int = 0) -> Iterator[tuple[_Node, int]]:
    yield node, level
    if depth is None or level < depth:
        for inner in node.inside:
            yield from _walk(inner, depth, level + 1)
