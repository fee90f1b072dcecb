"""The programs of a residual block: all of it, all under masks, none of its branch, some of its channels.

Notation: N rows, K gates of the block, the gate of its branch first if it has one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adaptify.errors import ModelError
from adaptify.graph.channels import Channels, find_channels
from adaptify.graph.gate_cost import GateCost
from adaptify.graph.gate_sites import GateSite
from adaptify.graph.gating import insert_masks, masked_readers, slices_of
from adaptify.graph.leftovers import is_relu, tidy
from adaptify.graph.pieces import without_branch
from adaptify.graph.program import compile_graph
from adaptify.graph.sites import BlockSite
from adaptify.graph.surgery import remove_channels
from adaptify.graph.trace import Traced
from adaptify.runtime.fast import fast_form

Bits = npt.NDArray[np.bool_]

_MASKS = "adaptify_masks"  # where the graph of a block under masks keeps its tables


class Programs:
    """What can be run of a residual block.

    Attributes:
        full: All of it, gates open: (N, ...) -> (N, ...).
        skipped: All but its branch, or None where that would yield what went in.
        has_layer_gate: Whether its branch has a gate.
        gates: K.
    """

    def __init__(
        self, piece: Traced, block: BlockSite, sites: Sequence[GateSite], *, device: torch.device, keeps: bool
    ) -> None:
        """Prepare the programs of a block.

        Args:
            piece: The block, as a network by itself.
            block: Where its parts are in it.
            sites: Its gates; that of its branch comes first.
            device: Where it will run.
            keeps: Whether a ReLU behind the block leaves what enters it as it is: nothing is below 0.
        """
        self._piece, self._block, self._sites, self._device = piece, block, tuple(sites), device
        self.has_layer_gate = sites[0].position == "layer"
        self.gates = sum(site.gates for site in sites)
        self.full = _compiled(piece, device)
        rest = fast_form(without_branch(piece, block), device)
        steps = [node for node in rest.graph.nodes if node.op not in ("placeholder", "output")]
        is_identity = not steps or (keeps and all(is_relu(rest.root, node) for node in steps))
        self.skipped = None if is_identity else partial(compile_graph(rest.graph), rest.root)

    @cached_property
    def masked(self) -> Callable[[Tensor, Tensor], Tensor]:
        """All of it, computed in full and scaled by its gates: (N, ...), (N, K) -> (N, ...)."""
        return _masked(self._piece, self._channels, self._sites, self._device)

    def share(self, opened: Bits) -> float:
        """MACs with only these gates (K,) open, as a part of all MACs of the block."""
        return int(self._cost(torch.from_numpy(opened).long())) / self._cost.total

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
        return Narrow(
            opened=opened,
            gates=np.array(gates, np.int64),
            share=self.share(opened),
            full=_compiled(small, self._device),
            build_masked=partial(_masked_again, small, self._channels, tuple(sites), self._device),
        )

    @cached_property
    def _channels(self) -> Channels | None:
        has_channels = any(site.position != "layer" for site in self._sites)
        return find_channels(self._piece) if has_channels else None

    @cached_property
    def _cost(self) -> GateCost:
        return GateCost(self._piece, self._channels, self._sites)


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
    full: Callable[[Tensor], Tensor]
    build_masked: Callable[[], Callable[[Tensor, Tensor], Tensor] | None]

    @cached_property
    def masked(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """The same scaled by gates, those that it has: (N, ...), (N, len(gates)) -> (N, ...).

        None where it cannot be masked as the whole block is: constants have taken the place of a part of the
        branch, or a convolution that was grouped has a single group left.
        """
        return self.build_masked()


def _kept(site: GateSite, opened: Bits) -> Tensor:
    """Channels (size,) of a site that its gates leave open."""
    return torch.from_numpy(np.concatenate([[True], opened])[site.gate_of()])


def _compiled(traced: Traced, device: torch.device) -> Callable[..., Tensor]:
    graph = copy.deepcopy(traced.graph)
    tidy(traced.root, graph)
    fast = fast_form(replace(traced, graph=graph), device)
    return partial(compile_graph(fast.graph), fast.root)


def _masked(
    traced: Traced, channels: Channels | None, sites: Sequence[GateSite], device: torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    own = traced.with_own_tensors()
    own.root.add_module(_MASKS, nn.Module())
    graph = insert_masks(own, channels, sites, _MASKS)
    return _compiled(Traced(own.root, graph, own.input_shape), device)


def _masked_again(
    small: Traced, whole: Channels, sites: Sequence[GateSite], device: torch.device
) -> Callable[[Tensor, Tensor], Tensor] | None:
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
    return _masked(small, channels, sites, device)


def _readers(channels: Channels, group: str) -> set[str]:
    return {member.target for member in masked_readers(channels, group)}
