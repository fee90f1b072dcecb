"""What adapters do to channels: they read some and write others, and each row ties one to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from adaptify.graph.adapters import ADAPTERS, ChannelGather, ChannelScatter
from adaptify.graph.labels import Classes, spread
from adaptify.graph.propagation import Propagation, Use


def gather(propagation: Propagation, node: fx.Node, x: Tensor) -> Tensor:
    """Reads the channels of a stream, writes one of its own for each row."""
    module = propagation.root.get_submodule(str(node.target))
    assert isinstance(module, ChannelGather)
    propagation.use("read", node, propagation.space.line(x, module.axis), module)
    writes = propagation.produced(node, len(module.rows), module)
    return spread(writes, module.axis, node.meta["shape"])


def scatter(propagation: Propagation, node: fx.Node, x: Tensor, stream: Tensor | None = None) -> Tensor:
    """Reads its rows, writes channels of a stream: those of the other operand, if it has one."""
    module = propagation.root.get_submodule(str(node.target))
    assert isinstance(module, ChannelScatter)
    propagation.use("read", node, propagation.space.line(x, module.axis), module)
    writes = propagation.produced(node, module.channels, module)
    if stream is not None:
        propagation.space.merge(writes, propagation.space.line(stream, module.axis))
    return spread(writes, module.axis, node.meta["shape"])


@dataclass(frozen=True)
class Rows:
    """The channels that the rows of an adapter tie together.

    Attributes:
        target: Qualified name of the adapter.
        block: (R,) class of each row on the side of the block.
        stream: (R,) class of the channel of the stream that it stands for.
        gathers: Whether the block reads the stream here; otherwise it adds to it.
    """

    target: str
    block: Tensor
    stream: Tensor
    gathers: bool


def is_scatter(root: nn.Module, node: fx.Node) -> bool:
    """Whether `node` adds rows to a stream."""
    return node.op == "call_module" and isinstance(root.get_submodule(str(node.target)), ChannelScatter)


def find_rows(propagation: Propagation, classes: Classes) -> tuple[Rows, ...]:
    """Return the rows of all adapters, in the order of the graph."""
    found = []
    for (kind, target), read in propagation.uses.items():
        module = propagation.root.get_submodule(target) if kind == "read" else None
        if not isinstance(module, ADAPTERS):
            continue
        reads, writes = (
            classes.of[read.labels],
            classes.of[propagation.uses["write", target].labels],
        )
        places = torch.tensor(module.rows, dtype=torch.int64)
        gathers = isinstance(module, ChannelGather)
        block, stream = (writes, reads[places]) if gathers else (reads, writes[places])
        found.append(Rows(target, block, stream, gathers))
    return tuple(found)


def freeze_streams(classes: Classes, rows: tuple[Rows, ...]) -> Classes:
    """Freeze what cannot leave a stream since the row of a block that stands for it cannot go."""
    before = -1
    while before != (before := int(classes.frozen.sum())):
        for item in rows:
            for reason in classes.reason[item.block].unique().tolist():
                if reason >= 0:
                    tied = item.stream[classes.reason[item.block] == reason]
                    if not bool(classes.frozen[tied].all()):
                        classes = classes.freeze(tied, f"{item.target}: {classes.reasons[reason]}")
    return classes


def close(
    uses: Mapping[tuple[str, str], Use], classes: Classes, rows: tuple[Rows, ...], kept: Tensor
) -> Tensor:
    """Return which of the `kept` classes (bool) are left once all that follows is closed as well.

    A channel of a stream that is closed takes along the rows that read it and that add to it. A channel that
    no layer reads any more is closed: its rows are closed, or what its readers write is closed. Neither
    changes what the network computes but for the first, where a stream was closed on purpose.
    """
    tied = kept.clone()
    before = -1
    while before != (before := int(tied.sum())):
        for item in rows:
            tied[item.block[~tied[item.stream]]] = False
    adapters = {item.target for item in rows}
    layers = [
        (classes.of[use.labels], classes.of[uses["write", target].labels])
        for (kind, target), use in uses.items()
        if kind == "read" and target not in adapters
    ]
    # From what must stay back to all that it is computed from.
    live = classes.frozen.clone()
    before = -1
    while before != (before := int(live.sum())):
        for reads, writes in reversed(layers):
            if bool(live[writes].any()):
                live[reads] = tied[reads]
        for item in reversed(rows):
            read, written = (item.stream, item.block) if item.gathers else (item.block, item.stream)
            live[read[live[written] & tied[read]]] = True
    return live
