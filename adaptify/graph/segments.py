"""Cutting a graph into segments that run one after the other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from adaptify.errors import ModelError


@dataclass(frozen=True)
class Segment:
    """A piece of a graph, itself a graph.

    Attributes:
        graph: Takes the tensors that are live where the segment begins and returns, as a tuple, those
            that are live where it ends.
        inputs: Names, in the whole graph, of the nodes that come in.
        outputs: Names of the nodes that go out.
    """

    graph: fx.Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def cut(
    graph: fx.Graph, after: Sequence[fx.Node], reads: Sequence[Sequence[fx.Node]] | None = None
) -> tuple[Segment, ...]:
    """Cut `graph` after each of the given nodes (in graph order) into `len(after) + 1` segments.

    The last segment returns what the graph returns, in a tuple of one. Each other segment returns what the
    next one takes, followed by what is read at its end and not taken. Constants that are needed on both
    sides of a cut are computed on both; sizes that are the same for every batch become literals.

    Args:
        graph: The graph.
        after: Where to cut.
        reads: For each cut: nodes up to it whose values are wanted there; None: only what is taken.

    Raises:
        ModelError: A size that depends on the batch crosses a cut.
    """
    nodes = list(graph.nodes)
    order = {node: index for index, node in enumerate(nodes)}
    result = nodes[-1].args[0]
    wanted = nodes[-1].all_input_nodes
    segments: list[Segment] = []
    # From the last segment to the first, since what a segment needs is what the one before must give.
    ends = [-1, *(order[node] for node in after), len(nodes) - 1]
    for index in reversed(range(len(ends) - 1)):
        start, end = ends[index], ends[index + 1]
        # What nobody reads may change a tensor in place (`x.relu_()`), so it runs where it stands.
        unread = [node for node in nodes[start + 1 : end] if not node.users and node.op != "placeholder"]
        needed, inputs = _closure([*wanted, *unread], order, inside=set(nodes[start + 1 :]))
        segments.append(_segment(needed, inputs, wanted, result))
        read = reads[index - 1] if reads is not None and index else ()
        wanted = [*inputs, *(node for node in read if node not in inputs)]
        result = tuple(wanted)
    return tuple(reversed(segments))


def extract(wanted: Sequence[fx.Node], order: dict[fx.Node, int], inside: Collection[fx.Node]) -> Segment:
    """Return what computes `wanted` from nodes of the samples that are not `inside`, whose values come in.

    Args:
        wanted: Nodes whose values are returned, as a tuple.
        order: Position of every node of the graph.
        inside: The nodes that may be computed; constants are computed wherever they are.

    Raises:
        ModelError: A size that depends on the batch comes in.
    """
    needed, inputs = _closure(wanted, order, inside)
    return _segment(needed, inputs, wanted, tuple(wanted))


def _closure(
    wanted: Sequence[fx.Node], order: dict[fx.Node, int], inside: Collection[fx.Node]
) -> tuple[list[fx.Node], list[fx.Node]]:
    """The nodes to compute for `wanted`, and those that come in from outside, in graph order."""
    needed: set[fx.Node] = set()
    inputs: set[fx.Node] = set()
    pending = list(wanted)
    while pending:
        node = pending.pop()
        if node in needed or node in inputs:
            continue
        if node.op == "placeholder" or (node.meta["sampled"] and node not in inside):
            if node.meta["shape"] is None:
                raise ModelError(
                    f"the size {node.meta['name']} depends on the batch and is used after a cut",
                    "Choose another site.",
                )
            inputs.add(node)
        else:
            needed.add(node)
            if "constant" not in node.meta:
                pending.extend(node.all_input_nodes)
    return sorted(needed, key=order.__getitem__), sorted(inputs, key=order.__getitem__)


def _segment(
    needed: Sequence[fx.Node], inputs: Sequence[fx.Node], wanted: Sequence[fx.Node], result: Any
) -> Segment:
    graph = fx.Graph()
    values: dict[fx.Node, Any] = {}
    for node in inputs:
        values[node] = graph.placeholder(node.name)
        values[node].meta = dict(node.meta)
    for node in needed:
        values[node] = node.meta.get("constant")
        if values[node] is None:
            values[node] = graph.node_copy(node, values.__getitem__)
    graph.output(fx.node.map_arg(result if isinstance(result, tuple) else (result,), values.__getitem__))
    return Segment(graph, tuple(node.name for node in inputs), tuple(node.name for node in wanted))
