"""Cuts: places of the graph where a single tensor carries everything the rest needs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from adaptify.graph.trace import Traced


@dataclass(frozen=True)
class Cut:
    """A place where one tensor is live.

    Attributes:
        node: The node that yields the tensor; everything after the cut depends on the input through it alone.
        position: Index in the graph of the last node before the cut.
    """

    node: fx.Node
    position: int


def find_cuts(traced: Traced) -> list[Cut]:
    """Return all cuts of the network in order, the input and the output itself left out.

    A tensor is live at a position when it is computed before and used after it. Constants do not
    count: they can be computed again on either side. A size taken before the cut and used after it
    would be wrong once rows have left the batch, so such places are no cuts.
    """
    nodes = list(traced.graph.nodes)
    order = {node: index for index, node in enumerate(nodes)}
    last_use = {node: max((order[user] for user in node.users), default=order[node]) for node in nodes}
    live: set[fx.Node] = set()
    cuts: list[Cut] = []
    for index, node in enumerate(nodes[:-1]):
        if node.meta["sampled"]:
            live.add(node)
        live = {earlier for earlier in live if last_use[earlier] > index}
        if len(live) != 1:
            continue
        (only,) = live
        if only.op == "placeholder" or not only.meta["batched"]:
            continue
        if last_use[only] == len(nodes) - 1 and only.users.keys() == {nodes[-1]}:
            continue
        if cuts and cuts[-1].node is only:
            cuts[-1] = Cut(only, index)
        else:
            cuts.append(Cut(only, index))
    return cuts
