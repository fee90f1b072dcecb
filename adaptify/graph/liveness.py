"""What is left of a graph once channels are closed: which nodes still compute something that is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from adaptify.errors import ModelError
from adaptify.graph.adapter_rules import is_scatter
from adaptify.graph.channels import Channels
from adaptify.graph.sites import ADDITIONS


@dataclass(frozen=True)
class Liveness:
    """The state of every node under a choice of channels.

    Attributes:
        empty: Nodes whose value has lost all its channels.
        constant: Nodes whose value is the same for every input, since a layer reads nothing any more.
        needed: Nodes that the output still depends on; constant ones are needed for their value only.
        same: Additions that add nothing any more -> the operand that is left.
    """

    empty: frozenset[fx.Node]
    constant: frozenset[fx.Node]
    needed: frozenset[fx.Node]
    same: Mapping[fx.Node, fx.Node]

    def computed(self, node: fx.Node) -> bool:
        """Whether `node` still runs."""
        return node in self.needed and node not in self.constant


def find_live(channels: Channels, keep: Mapping[str, Tensor]) -> Liveness:
    """Find out what is computed under `keep`.

    Raises:
        ModelError: The masks do not fit, or nothing connects the output to the input any more.
    """
    keep = channels.complete(keep)
    kept = channels.kept_classes(keep)
    nodes = list(channels.traced.graph.nodes)
    if bool(kept.all()) or all(bool(mask.any()) for mask in keep.values()):
        # As long as every group keeps a channel, every value does.
        return Liveness(frozenset(), frozenset(), _needed(nodes[-1], frozenset(), frozenset(), {}), {})
    values = channels.propagation.values
    reads = {
        node: use.labels
        for use in channels.propagation.uses.values()
        if use.kind == "read"
        for node in use.nodes
    }
    empty: set[fx.Node] = set()
    constant: set[fx.Node] = set()
    zero: set[fx.Node] = set()
    same: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node.op in ("placeholder", "get_attr") or not _tensors(values[node]):
            continue
        if not any(bool(kept[channels.movements.of(labels)].any()) for labels in _tensors(values[node])):
            empty.add(node)
            continue
        inputs = [parent for parent in node.all_input_nodes if _tensors(values[parent])]
        gone = [parent for parent in inputs if parent in empty or parent in constant]
        sampled = [parent for parent in inputs if parent.meta["sampled"]]
        reads_nothing = node in reads and not bool(kept[channels.classes.of[reads[node]]].any())
        adds_nothing = reads_nothing and is_scatter(channels.traced.root, node)
        left = _only_operand(node, zero, adds_nothing)
        if (reads_nothing and left is None) or (gone and all(parent in gone for parent in sampled)):
            constant.add(node)
            if adds_nothing and len(inputs) == 1:
                zero.add(node)
        elif left is not None:
            same[node] = left
    if nodes[-1] in constant or nodes[-1] in empty or nodes[-1].all_input_nodes[0] in constant:
        raise ModelError(
            "nothing connects the output of the network to its input any more",
            "Keep at least one channel in every group that all paths pass.",
        )
    gone_nodes, constant_nodes = frozenset(empty), frozenset(constant)
    return Liveness(gone_nodes, constant_nodes, _needed(nodes[-1], gone_nodes, constant_nodes, same), same)


def _only_operand(node: fx.Node, zero: set[fx.Node], adds_nothing: bool) -> fx.Node | None:
    """The operand that `node` yields as it is, since all that it adds to it is zero."""
    if adds_nothing and len(node.all_input_nodes) == 2:
        stream = node.args[1]
        assert isinstance(stream, fx.Node)
        return stream
    if node.target not in ADDITIONS or "alpha" in node.kwargs:
        return None
    others = [parent for parent in node.all_input_nodes if parent not in zero]
    is_left = len(node.all_input_nodes) == 2 and len(others) == 1
    return others[0] if is_left and others[0].meta["shape"] == node.meta["shape"] else None


def _needed(
    output: fx.Node,
    empty: frozenset[fx.Node],
    constant: frozenset[fx.Node],
    same: Mapping[fx.Node, fx.Node],
) -> frozenset[fx.Node]:
    needed: set[fx.Node] = set()
    pending = [output]
    while pending:
        node = pending.pop()
        if node in needed or node in empty:
            continue
        needed.add(node)
        if node in same:
            pending.append(same[node])
        elif node not in constant:
            pending.extend(node.all_input_nodes)
    return frozenset(needed)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []
