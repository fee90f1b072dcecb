"""MACs of a network as a function of its gates: what a loss penalises and what a report prints."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from adaptify.errors import TargetError
from adaptify.graph.channel_cost import ChannelCost, product
from adaptify.graph.channels import Channels
from adaptify.graph.cost import CostModel
from adaptify.graph.gate_sites import GateSite
from adaptify.graph.sites import nodes_between
from adaptify.graph.trace import Traced


class GateCost:
    """MACs (without those of the gates themselves) for given decisions, differentiable in them.

    A layer costs in proportion to the open channels that it reads, times those that it writes; the branch of
    a closed residual block costs nothing.

    Attributes:
        total: MACs with all gates open.
        least: MACs with all gates closed.
        gates: Number of gates, all sites together.
        nodes: Names of the nodes that cost anything.
    """

    def __init__(
        self,
        traced: Traced,
        channels: Channels | None,
        sites: Sequence[GateSite],
        cost: CostModel | None = None,
        *,
        whole: Collection[str] = (),
    ) -> None:
        """Prepare the cost of `sites` in the order in which decisions will list them.

        Args:
            traced: The network.
            channels: Its channels, where sites are channel groups.
            sites: All sites of all deciders.
            cost: MACs of the network, where they are known.
            whole: Names of nodes that always run in full, as what runs while the gates are decided: they cost
                the same whatever is closed, even in a branch that is.
        """
        cost = cost or CostModel(traced)
        self._sizes = [site.gates for site in sites]
        self.gates = sum(self._sizes)
        nodes = [node for node in traced.graph.nodes if cost.macs[node.name]]
        self.nodes = tuple(node.name for node in nodes)
        self._channels = ChannelCost(channels, cost) if channels is not None else None
        self._macs = torch.tensor([cost.macs[node.name] for node in nodes], dtype=torch.int64)
        groups = self._channels.names if self._channels is not None else ()
        # How many channels each gate opens, and which gate switches each node; most have none, so the last.
        self._opens = torch.zeros(self.gates, len(groups), dtype=torch.int64)
        self._switch = torch.full((len(nodes),), self.gates)
        self._whole = torch.tensor([node.name in whole for node in nodes], dtype=torch.bool)
        column = {name: index for index, name in enumerate(groups)}
        by_name = {node.name: node for node in traced.graph.nodes}
        place = {node: index for index, node in enumerate(nodes)}
        start = 0
        for site in sites:
            if site.position == "layer":
                assert site.block is not None
                for node in nodes_between(by_name[site.block.source], by_name[site.block.branch]):
                    if node in place:
                        self._switch[place[node]] = start  # blocks do not overlap
            else:
                for gate in site.gate_of():
                    if gate:
                        self._opens[start + gate - 1, column[site.name]] += 1
            start += site.gates
        self.total = cost.total
        self.least = int(self(torch.zeros(self.gates, dtype=torch.int64)))

    def __deepcopy__(self, memo: dict[int, Any]) -> GateCost:
        # It never changes: copies of a model share it.
        return self

    def __call__(self, gates: Tensor) -> Tensor:
        """Return the MACs (...) for gates (..., self.gates): exact for integers 0 and 1, float64 otherwise.

        Exact as long as no group of channels is empty: what an empty group takes with it is not looked at.
        """
        return self.per_node(gates).sum(-1)

    def per_node(self, gates: Tensor) -> Tensor:
        """Return the MACs (..., len(self.nodes)) of each node for gates (..., self.gates)."""
        gates = gates.to(torch.float64 if gates.is_floating_point() else torch.int64)
        macs = self._macs.to(gates)
        if self._channels is not None:
            sizes = self._channels.sizes.to(gates)
            opens = self._opens.to(gates)
            macs = self._channels.per_node(sizes - product(1 - gates, opens.T))
        open_or_none = torch.cat([gates, torch.ones_like(gates[..., :1])], -1)
        macs = macs * open_or_none[..., self._switch.to(gates.device)]
        return torch.where(self._whole.to(gates.device), self._macs.to(gates), macs)

    def check_target(self, target: float) -> None:
        """Refuse a target that is missed even with all gates closed.

        Args:
            target: Fraction of the MACs to keep.

        Raises:
            TargetError: It cannot be reached.
        """
        least = self.least / self.total
        if target <= least:
            raise TargetError(
                f"a target of {target:.3g} of the MACs is out of reach: "
                f"with all gates closed {least:.3g} are left",
                "Ask for more, or put gates at more positions.",
            )

    def without(self, site: int) -> int:
        """Return the MACs with all gates of one site closed, and all others open."""
        gates = torch.ones(self.gates, dtype=torch.int64)
        gates[sum(self._sizes[:site]) : sum(self._sizes[: site + 1])] = 0
        return int(self(gates))

    def kept(self, gates: Tensor) -> Tensor:
        """Return the MACs as a fraction (...) of those with all gates open."""
        return self(gates.double()) / self.total
