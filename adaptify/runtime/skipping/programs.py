"""The programs of a residual block: all of it, all under masks, none of its branch, some of its channels.

Where the first layer of the branch runs beside what decides, for all rows and in full, they are programs of
what follows it, with its value as a second input.

Notation: N rows, K gates of the block, the gate of its branch first if it has one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from adaptify.errors import ModelError
from adaptify.graph.adapters import ChannelGather
from adaptify.graph.axes import channel_axis
from adaptify.graph.channels import Channels, find_channels
from adaptify.graph.cost import CostModel
from adaptify.graph.gate_cost import GateCost
from adaptify.graph.gate_sites import GateSite
from adaptify.graph.gating import insert_masks, masked_readers, slices_of
from adaptify.graph.leftovers import is_relu, tidy
from adaptify.graph.pieces import end_of_first_layer, head_of, tail_of, without_branch
from adaptify.graph.program import compile_graph
from adaptify.graph.sites import BlockSite
from adaptify.graph.surgery import remove_channels
from adaptify.graph.trace import Traced
from adaptify.runtime.fast import fast_form

Bits = npt.NDArray[np.bool_]
Program = Callable[..., Tensor]

_MASKS = "adaptify_masks"  # where the graph of a block under masks keeps its tables


class Programs:
    """What can be run of a residual block.

    Attributes:
        head: Its first layer, where that does not wait for the gates: (N, ...) -> (N, ...).
        full: All of it, gates open: (N, ...) -> (N, ...). What a head yields is a second input, here and of
            everything else but `skipped`.
        skipped: All but its branch, or None where that would yield what went in: (N, ...) -> (N, ...).
        has_layer_gate: Whether its branch has a gate.
        gates: K.
    """

    def __init__(
        self,
        piece: Traced,
        block: BlockSite,
        sites: Sequence[GateSite],
        *,
        device: torch.device,
        keeps: bool,
        first: str | None = None,
    ) -> None:
        """Prepare the programs of a block.

        Args:
            piece: The block, as a network by itself.
            block: Where its parts are in it.
            sites: Its gates; that of its branch comes first.
            device: Where it will run.
            keeps: Whether a ReLU behind the block leaves what enters it as it is: nothing is below 0.
            first: Name of the node that is its first layer, where that does not wait for the gates.
        """
        self._piece, self._sites = piece, tuple(sites)
        self._end = end_of_first_layer(piece, first) if first is not None else None
        self._first = first if self._end is not None else None
        self._compile = partial(_compiled, device=device, end=self._end)
        self.head = None if self._end is None else _compiled(head_of(piece, self._end), device)
        self.has_layer_gate = sites[0].position == "layer"
        self.gates = sum(site.gates for site in sites)
        self.full = self._compile(piece)
        rest = fast_form(without_branch(piece, block), device)
        steps = [node for node in rest.graph.nodes if node.op not in ("placeholder", "output")]
        is_identity = not steps or (keeps and all(is_relu(rest.root, node) for node in steps))
        self.skipped = None if is_identity else partial(compile_graph(rest.graph), rest.root)

    @cached_property
    def masked(self) -> Program:
        """All of it, computed in full and scaled by its gates: (N, ...), (N, K) -> (N, ...)."""
        return self._compile(_with_masks(self._piece, self._channels, self._sites))

    def share(self, opened: Bits) -> float:
        """MACs with only these gates (K,) open, as a part of all MACs of the block but those of its head."""
        cost, head = self._cost
        return (int(cost(torch.from_numpy(opened).long())) - head) / (cost.total - head)

    def narrow(self, opened: Bits) -> Narrow:
        """Build the block with only the channels that these gates (K,) leave open.

        Raises:
            ModelError: Channels cannot be removed.
        """
        assert self._channels is not None
        places = list(zip(self._sites, slices_of(self._sites), strict=True))
        keep = {site.name: _kept(site, opened[place]) for site, place in places if site.position != "layer"}
        # What closed channels alone have fed or read goes with them, gates of its own included.
        keep = self._channels.complete(keep)
        sites, gates = [], []
        for site, place in places:
            size = int(keep[site.name].sum()) if site.position != "layer" else site.size
            if size > site.always_open:
                own = [gate for gate in range(place.start, place.stop) if opened[gate]]
                left = replace(site, size=size)
                if left.gates != len(own):
                    raise ModelError(
                        f"gates of {site.name} lose a part of their channels", "Keep them whole."
                    )
                sites.append(left)
                gates += own
        small = remove_channels(self._channels, keep, keep_adapters=True)
        compiled = partial(self._compile, gather=self._gather(keep))
        return Narrow(
            opened=opened,
            gates=np.array(gates, np.int64),
            share=self.share(opened),
            full=compiled(small),
            build_masked=partial(_masked_again, small, self._channels, tuple(sites), compiled),
        )

    def _gather(self, keep: Mapping[str, Tensor]) -> ChannelGather | None:
        """What selects those of the head's channels that are left; None where that is no work."""
        if self._end is None or self._first is None:
            return None
        assert self._channels is not None
        axis = channel_axis(self._piece, self._end)
        assert axis is not None, "its channels are known, as they have gates"
        layer = self._piece.node(self._first).target
        stays = torch.ones(self._end.meta["shape"][axis], dtype=torch.bool)
        for name, kept in keep.items():
            for member in self._channels.group(name).of_kind("write"):
                if member.target == layer:
                    stays[member.positions[~kept]] = False
        gather = ChannelGather(len(stays), axis, stays.nonzero().flatten().tolist())
        return None if gather.is_identity else gather

    @cached_property
    def _channels(self) -> Channels | None:
        has_channels = any(site.position != "layer" for site in self._sites)
        return find_channels(self._piece) if has_channels else None

    @cached_property
    def _cost(self) -> tuple[GateCost, int]:
        """MACs of the block, and of its head."""
        cost = CostModel(self._piece)
        whole = [] if self._first is None else [self._first]
        gate_cost = GateCost(self._piece, self._channels, self._sites, cost, whole=whole)
        return gate_cost, sum(cost.macs[name] for name in whole)


@dataclass
class Narrow:
    """A block with only some of its channels.

    Attributes:
        opened: (K,) the gates that it was built for, that of the branch among them.
        gates: The positions of those whose channels it has, ascending.
        share: Its MACs as a part of those of the whole block.
        full: All of what it has: (N, ...) -> (N, ...).
        build_masked: Makes `masked`.
    """

    opened: Bits
    gates: npt.NDArray[np.int64]
    share: float
    full: Program
    build_masked: Callable[[], Program | None]

    @cached_property
    def masked(self) -> Program | None:
        """The same scaled by gates, those that it has: (N, ...), (N, len(gates)) -> (N, ...).

        None where it cannot be masked as the whole block is: constants have taken the place of a part of the
        branch, or a convolution that was grouped has a single group left.
        """
        return self.build_masked()


def _kept(site: GateSite, opened: Bits) -> Tensor:
    """Channels (size,) of a site that its gates leave open."""
    return torch.from_numpy(np.concatenate([[True], opened])[site.gate_of()])


def _compiled(
    traced: Traced, device: torch.device, end: fx.Node | None = None, gather: ChannelGather | None = None
) -> Program:
    """The program of a block, or of what follows `end` in it."""
    if end is None:
        traced = replace(traced, graph=copy.deepcopy(traced.graph))
    else:
        traced = tail_of(traced, end, gather)
    tidy(traced.root, traced.graph)
    fast = fast_form(traced, device)
    return partial(compile_graph(fast.graph), fast.root)


def _with_masks(traced: Traced, channels: Channels | None, sites: Sequence[GateSite]) -> Traced:
    own = traced.with_own_tensors()
    own.root.add_module(_MASKS, nn.Module())
    graph = insert_masks(own, channels, sites, _MASKS)
    return Traced(own.root, graph, own.input_shape)


def _masked_again(
    small: Traced, whole: Channels, sites: Sequence[GateSite], compiled: Callable[[Traced], Program]
) -> Program | None:
    """The program of a part of a block under masks; None where they would lie elsewhere than in the whole."""
    channels = find_channels(small) if any(site.position != "layer" for site in sites) else None
    nodes = {node.name: node for node in small.graph.nodes}
    for site in sites:
        if site.position == "layer":
            is_same = site.block is not None and site.block.branch in nodes
        else:
            is_same = (
                channels is not None
                and site.name in channels.by_name
                and _readers(channels, site.name) == _readers(whole, site.name)
            )
        if not is_same:
            return None
    return compiled(_with_masks(small, channels, sites))


def _readers(channels: Channels, group: str) -> set[str]:
    return {member.target for member in masked_readers(channels, group)}
