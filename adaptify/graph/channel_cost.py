"""MACs of a network with some of its channels, from the groups alone: nothing is built."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adaptify.graph.channels import Channels
from adaptify.graph.cost import CostModel
from adaptify.graph.liveness import find_live
from adaptify.graph.propagation import Use


class ChannelCost:
    """MACs as a function of how many channels each removable group keeps.

    A layer costs `coefficient * inputs * outputs`, bilinear in the numbers of channels it reads and writes,
    and those are linear in what the groups keep; in a grouped convolution, which loses whole groups, the
    inputs per output never change. All other nodes cost what they did: their channels are frozen.

    Attributes:
        names: Names of the removable groups, in the order of the graph.
        sizes: (G,) int64, their sizes.
        total: MACs of the whole network.
        nodes: The nodes that cost anything, in the order of the graph.
    """

    def __init__(self, channels: Channels, cost: CostModel | None = None) -> None:
        """Prepare the cost of `channels`; `cost` is the cost model of the same network, if there is one."""
        cost = cost or CostModel(channels.traced)
        self.channels = channels
        self.total = cost.total
        self.names = tuple(group.name for group in channels.removable)
        self.sizes = torch.tensor([group.size for group in channels.removable], dtype=torch.int64)
        uses = channels.propagation.uses
        self.nodes = [node for node in channels.traced.graph.nodes if cost.macs[node.name]]
        rows = [
            _Row(channels.traced.root, uses, str(node.target), cost.macs[node.name]) for node in self.nodes
        ]
        by_target: dict[str, list[int]] = {}
        for index, node in enumerate(self.nodes):
            by_target.setdefault(str(node.target), []).append(index)
        self._coefficient = torch.tensor([row.coefficient for row in rows], dtype=torch.int64)
        # Channels that no group can remove, then the channels per choice of each group.
        self._inputs = torch.tensor([row.inputs for row in rows], dtype=torch.int64)
        self._outputs = torch.tensor([row.outputs for row in rows], dtype=torch.int64)
        self._reads = torch.zeros(len(rows), len(self.names), dtype=torch.int64)
        self._writes = torch.zeros_like(self._reads)
        for column, group in enumerate(channels.removable):
            for member in group.members:
                for index in by_target.get(member.target, ()):
                    width = member.positions.shape[1]
                    if member.kind == "read" and rows[index].bilinear:
                        self._reads[index, column] = width
                        self._inputs[index] -= member.positions.numel()
                    elif member.kind == "write":
                        self._writes[index, column] = width
                        self._outputs[index] -= member.positions.numel()

    def counts(self, keep: Mapping[str, Tensor]) -> Tensor:
        """Return (G,) how many channels each removable group keeps; sums of soft masks are differentiable."""
        return (
            torch.stack(
                [
                    keep[name].sum() if name in keep else size
                    for name, size in zip(self.names, self.sizes, strict=True)
                ]
            )
            if self.names
            else self.sizes
        )

    def of_counts(self, counts: Tensor) -> Tensor:
        """Return the MACs (...) when the groups keep `counts` (..., G) channels, int64 or floating.

        Exact as long as no group is empty: what an empty group takes with it is not looked at.
        """
        return self.per_node(counts).sum(-1)

    def macs(self, keep: Mapping[str, Tensor]) -> int:
        """Return the exact MACs of the network that `surgery.remove_channels` makes of these masks (bool).

        Raises:
            ModelError: The masks do not fit, or leave nothing of the network.
        """
        keep = self.channels.complete(keep)
        live = find_live(self.channels, keep)
        computed = torch.tensor([live.computed(node) for node in self.nodes], dtype=torch.bool)
        counts = self.counts(keep)
        return int(self.per_node(counts)[computed].sum())

    def per_node(self, counts: Tensor) -> Tensor:
        """Return the MACs (..., nodes) of every node of `nodes`, as `of_counts` has them all together.

        In float64 for any floating counts, in integers for integers.
        """
        counts = counts.to(torch.float64 if counts.is_floating_point() else torch.int64)
        read = self._inputs.to(counts) + product(counts, self._reads)
        written = self._outputs.to(counts) + product(counts, self._writes)
        return self._coefficient.to(counts) * read * written


def product(counts: Tensor, table: Tensor) -> Tensor:
    """Return counts (..., G) times the transpose of `table` (n, G), also for integers on any device."""
    if counts.is_floating_point():
        return counts @ table.to(counts).T
    return (counts.unsqueeze(-2) * table.to(counts)).sum(-1)


class _Row:
    """The cost of one node: coefficient * inputs * outputs."""

    def __init__(self, root: nn.Module, uses: Mapping[tuple[str, str], Use], target: str, macs: int) -> None:
        self.coefficient, self.inputs, self.outputs, self.bilinear = macs, 1, 1, False
        read, write = uses.get(("read", target)), uses.get(("write", target))
        if read is None or write is None:
            return
        self.outputs = len(write.labels)
        self.bilinear = getattr(root.get_submodule(target), "groups", 1) == 1
        if self.bilinear:
            self.inputs = len(read.labels)
        self.coefficient = macs // (self.inputs * self.outputs)
