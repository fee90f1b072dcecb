"""The exits of a network as they run: what each reads, and how its logits and its gate come of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, fx, nn

from adaptify.errors import ModelError
from adaptify.gates.learned_exit import LearnedExit
from adaptify.graph.cost import count_module
from adaptify.graph.own_exits import OwnExit, without_heads
from adaptify.graph.program import compile_graph
from adaptify.graph.segments import cut
from adaptify.graph.sites import ExitSite
from adaptify.graph.trace import Traced


@dataclass(frozen=True)
class Exit:
    """A place to leave, and what predicts there.

    Attributes:
        site: Where it is.
        head: Maps the features of the site to logits (N, M); None: the head is part of the network.
    """

    site: ExitSite
    head: nn.Module | None


class HeadCost(NamedTuple):
    """MACs of an exit for one sample.

    Attributes:
        logits: Of its prediction.
        gate: Of a learned gate; 0 where the prediction itself decides.
    """

    logits: int
    gate: int = 0


@dataclass(frozen=True)
class Branch:
    """An exit as it runs, at the end of a segment.

    Attributes:
        live: How many of the tensors that its segment returns go on into the next one: the first ones.
        reads: Names of the nodes that the head reads.
        positions: Which of the tensors those are.
        logits: (root of the network, what is read) -> logits (N, M).
        gate: (what is read) -> log-odds (N,) of leaving, for exits with a learned gate.
        nodes: Nodes of the network's graph that belong to the head.
        macs: What it costs.
    """

    live: int
    reads: tuple[str, ...]
    positions: tuple[int, ...]
    logits: Callable[..., Tensor]
    gate: Callable[[Tensor], Tensor] | None
    nodes: frozenset[str]
    macs: HeadCost


class Branched(NamedTuple):
    """A network in pieces: one segment up to each exit, and the rest.

    Attributes:
        segments: (root, live tensors) -> live tensors, and what else the exit reads; the last: the logits.
        branches: The exits behind all segments but the last.
    """

    segments: tuple[Callable[..., tuple[Tensor, ...]], ...]
    branches: tuple[Branch, ...]


def branch(traced: Traced, exits: Sequence[Exit], own: Sequence[OwnExit]) -> Branched:
    """Cut a network at its exits.

    Args:
        traced: The network.
        exits: All exits, in the order of the network.
        own: Those that are part of the network: all of `exits`, or none.

    Raises:
        ModelError: A site is not a place where rows can leave.
    """
    trunk = without_heads(traced, own)
    nodes: dict[str, fx.Node] = {node.name: node for node in trunk.nodes}
    after = [nodes[item.site.node] for item in exits]
    reads = [item.head.inputs for item in own] if own else [(item.site.node,) for item in exits]
    segments = cut(trunk, after, [[nodes[name] for name in names] for names in reads])
    branches = []
    for index, (item, names) in enumerate(zip(exits, reads, strict=True)):
        outputs = segments[index].outputs
        stuck = [name for name in outputs if not nodes[name].meta["batched"]]
        if stuck:
            raise ModelError(
                f"rows cannot leave at {item.site.name}: {stuck[0]} is not split by sample",
                "Choose another site: `adaptify inspect` lists them.",
            )
        live, positions = len(segments[index + 1].inputs), tuple(map(outputs.index, names))
        place = (live, tuple(names), positions)
        if item.head is None:
            head = own[index]
            run = _own_head(head.head.graph)
            branches.append(Branch(*place, run, None, head.nodes, HeadCost(head.macs)))
        else:
            shape = (1, *nodes[item.site.node].meta["shape"][1:])
            branches.append(_placed(item.head, place, shape))
    return Branched(tuple(compile_graph(segment.graph) for segment in segments), tuple(branches))


def _placed(
    head: nn.Module, place: tuple[int, tuple[str, ...], tuple[int, ...]], shape: tuple[int, ...]
) -> Branch:
    """The branch of a head that is put where a tensor of the given shape is."""
    predict = head.head if isinstance(head, LearnedExit) else head
    gate = head.gate if isinstance(head, LearnedExit) else None
    macs = HeadCost(count_module(predict, shape), count_module(gate, shape) if gate is not None else 0)
    return Branch(*place, lambda root, *read: predict(*read), gate, frozenset(), macs)


def _own_head(graph: fx.Graph) -> Callable[..., Tensor]:
    run = compile_graph(graph)

    def logits(root: nn.Module, *read: Tensor) -> Tensor:
        found: tuple[Tensor] = run(root, *read)
        return found[0]

    return logits
