"""What each exit of a network with `classifier[n].linear` for its exits costs, and what runs before it."""

from __future__ import annotations

import itertools

from torch import fx

from adaptify.graph.cost import CostModel
from adaptify.graph.trace import Traced


def exits(traced: Traced) -> list[fx.Node]:
    """Nodes of the logits, shallow to deep."""
    nodes = {node.target: node for node in traced.graph.nodes if node.op == "call_module"}
    count = len(traced.root.classifier)
    return [nodes[f"classifier.{exit_}.linear"] for exit_ in range(count)]


def needed(traced: Traced) -> list[set[fx.Node]]:
    """For each exit: the nodes that the logits of it and of all exits before depend on."""
    found: set[fx.Node] = set()
    result = []
    for node in exits(traced):
        todo = [node]
        while todo:
            current = todo.pop()
            if current not in found:
                found.add(current)
                todo += current.all_input_nodes
        result.append(set(found))
    return result


def exit_macs(traced: Traced, cost: CostModel) -> list[int]:
    """MACs up to each exit, of nothing but what is needed."""
    return [cost.of(nodes) for nodes in needed(traced)]


def block_macs(traced: Traced, cost: CostModel) -> list[int]:
    """MACs up to each exit, of all layers of its block and of the blocks before."""
    of_block = [0] * len(traced.root.classifier)
    for node in traced.graph.nodes:
        part, index, *_ = f"{node.meta['path']}..".split(".")
        if part in ("blocks", "classifier"):
            of_block[int(index)] += cost.macs[node.name]
    return list(itertools.accumulate(of_block))


def millions(macs: list[int], digits: int) -> list[float]:
    """In 10^6, with so many significant digits."""
    return [float(f"{count / 1e6:.{digits}g}") for count in macs]


class Outputs(fx.Interpreter):
    """Runs a traced network and keeps the logits of every exit."""

    def __init__(self, traced: Traced) -> None:
        super().__init__(traced.root, graph=traced.graph)
        self.exits = exits(traced)
        self.logits: list[object] = []

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n in self.exits:
            self.logits.append(value)
        return value
