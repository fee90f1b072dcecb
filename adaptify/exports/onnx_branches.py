"""Weights that one branch of an `If` alone uses, moved into that branch.

Runtimes fuse and pack the weights that a graph holds itself. What a branch takes from the graph around it
stays as it is, and its layers run slower for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def move_into_branches(graph: Any) -> None:
    """Move initializers of `graph` (an ONNX `GraphProto`) into the only branch that uses them."""
    for branch in _branches(graph):
        others = _used_outside(graph, branch)
        used = _used(branch)
        moved = [item for item in graph.initializer if item.name in used and item.name not in others]
        for item in moved:
            branch.initializer.append(item)
            graph.initializer.remove(item)
        move_into_branches(branch)


def _branches(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g


def _used(graph: Any) -> set[str]:
    """Names of the values that a graph, or a branch of it, reads."""
    names = {name for node in graph.node for name in node.input} | {item.name for item in graph.output}
    return names.union(*(_used(branch) for branch in _branches(graph)))


def _used_outside(graph: Any, branch: Any) -> set[str]:
    """Names of the values that everything of a graph but one of its branches reads."""
    names = {name for node in graph.node for name in node.input} | {item.name for item in graph.output}
    return names.union(*(_used(other) for other in _branches(graph) if other is not branch))
