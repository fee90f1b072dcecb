"""Exits that a network has of its own: it returns several logits (N, M), shallow to deep.

The last of them is the output. What only an earlier one needs is the head of that exit; the rest is the
trunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from adaptify.errors import ModelError
from adaptify.graph.cost import CostModel
from adaptify.graph.segments import Segment, extract
from adaptify.graph.sites import ExitSite, prefixes
from adaptify.graph.trace import Traced


@dataclass(frozen=True)
class OwnExit:
    """An exit that is part of the network.

    Attributes:
        site: Where it is: behind the last node of the trunk that it reads.
        head: From what it reads of the trunk to its logits, in a tuple of one.
        nodes: Names of the nodes of the head, in the graph of the network.
        macs: MACs of the head, for one sample.
    """

    site: ExitSite
    head: Segment
    nodes: frozenset[str]
    macs: int


def find_own_exits(traced: Traced, cost: CostModel) -> tuple[OwnExit, ...]:
    """Return the exits that the network has of its own, from shallow to deep; () for other networks."""
    nodes = list(traced.graph.nodes)
    order = {node: index for index, node in enumerate(nodes)}
    logits = [traced.node(name) for name in traced.own_exits]
    # What a deeper exit, or the output, needs as well belongs to the trunk.
    later: set[fx.Node] = _ancestors(nodes[-1])
    heads: list[set[fx.Node]] = []
    for node in reversed(logits):
        needed = _ancestors(node)
        heads.insert(0, needed - later)
        later |= needed
    trunk = set(nodes).difference(*heads) if heads else set(nodes)
    found: list[OwnExit] = []
    end = 0
    for node, own in zip(logits, heads, strict=True):
        head = extract([node], order, inside=own)
        end = max(end, *(order[traced.node(name)] for name in head.inputs))
        name, *aliases = [*_modules_within(nodes, own), node.meta["name"]]
        found.append(
            OwnExit(
                site=ExitSite(
                    name=name,
                    aliases=tuple(alias for alias in aliases if alias != name),
                    node=nodes[end].name,
                    channels=node.meta["shape"][1],
                    channel_axis=1,
                    positions=1,
                    macs_before=cost.of(other for other in nodes[: end + 1] if other in trunk),
                    is_module_output=True,
                ),
                head=head,
                nodes=frozenset(other.name for other in own),
                macs=cost.of(own),
            )
        )
    return tuple(found)


def refuse_own_exits(traced: Traced) -> None:
    """Refuse a network with exits of its own where something is to be closed inside it.

    Raises:
        ModelError: It has such exits.
    """
    if traced.own_exits:
        raise ModelError(
            f"{type(traced.root).__name__} has exits of its own, beside which nothing else can be closed",
            "Use its exits: --method boostnet.",
        )


def without_heads(traced: Traced, exits: Sequence[OwnExit]) -> fx.Graph:
    """The graph of the trunk: all that the output needs."""
    left_out = frozenset[str]().union(*(item.nodes for item in exits))
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        if node.name not in left_out:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return graph


def _modules_within(nodes: Sequence[fx.Node], head: set[fx.Node]) -> list[str]:
    """The modules that do nothing but what belongs to a head, outermost first.

    None where deeper exits need all of it.
    """
    elsewhere = {path for node in nodes if node not in head for path in prefixes(node.meta["path"])}
    inside = [prefixes(node.meta["path"]) for node in nodes if node in head]
    return [path for path in max(inside, key=len, default=[]) if path not in elsewhere]


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """The nodes that `node` depends on, itself included."""
    found: set[fx.Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if current not in found:
            found.add(current)
            pending.extend(current.all_input_nodes)
    return found
