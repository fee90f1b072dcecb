"""Where gates can be put that close channels or whole residual branches, found in the graph.

A site is a channel group of the network, or the branch of a residual block. In residual blocks the groups
are those between the adapters of `decouple`: what a branch reads of the stream ("input"), what it computes
inside ("channels"), what it adds to the stream ("output"), and what a projection adds ("shortcut").
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from adaptify.graph.channels import Channels
from adaptify.graph.decouple import find_block_groups
from adaptify.graph.grouping import ChannelGroup
from adaptify.graph.sites import BlockSite, nodes_between

Position = Literal["channels", "input", "output", "shortcut", "layer"]
POSITIONS: tuple[Position, ...] = ("input", "channels", "output", "shortcut")
"""The positions of channel gates, in the order in which a block has them."""


@dataclass(frozen=True)
class GateSite:
    """A place for gates that close something.

    Attributes:
        name: Name of the channel group, or of the residual block.
        position: What of a block is closed; "channels" also outside of blocks, "layer" for a whole branch.
        size: Number of channels (of choices, in grouped convolutions); 1 for a branch.
        filters: Channels that one gate closes together.
        always_open: Channels, the first ones, that no gate closes.
        block: The residual block it is in, if any.
    """

    name: str
    position: Position
    size: int
    filters: int
    always_open: int
    block: BlockSite | None

    @property
    def gates(self) -> int:
        """Number of gates, G."""
        return -(-(self.size - self.always_open) // self.filters)

    def gate_of(self) -> list[int]:
        """For each channel: 0 if it is always open, else 1 + the index of its gate."""
        free = range(self.size - self.always_open)
        return [0] * self.always_open + [1 + channel // self.filters for channel in free]


def find_channel_sites(
    channels: Channels, blocks: Sequence[BlockSite], *, positions: Collection[Position], filters: int | None
) -> tuple[GateSite, ...]:
    """Return the sites of channel gates, in the order of the network.

    Inside of residual branches a site can lose all its channels: the stream goes on. Elsewhere (in
    projections too) the first gate's channels have no gate, so that something is left. Streams themselves
    are not gated.

    Args:
        channels: The channels of the network; its residual blocks decoupled where they are to be gated.
        blocks: The residual blocks of the network.
        positions: Which positions of blocks get gates, and "channels" outside of them.
        filters: Channels that a gate closes together; None: an eighth of the site, between 16 and 128, and 8
            in sites of less than 64 channels.
    """
    place = _positions(channels, blocks)
    sites = []
    for group in channels.removable:
        position, block = place.get(group.name, ("channels", None))
        if position is None or position not in positions:
            continue
        chunk = max(1, (filters or _filters(group.size * group.width)) // group.width)
        always_open = 0 if block and position != "shortcut" else min(chunk, group.size)
        site = GateSite(group.name, position, group.size, chunk, always_open, block)
        if site.gates:
            sites.append(site)
    return tuple(sites)


def _filters(channels: int) -> int:
    """Channels of a gate: multiples of what `ChannelGroup.chunk(16)` keeps, so that no gate is cut apart."""
    return 8 if channels < 64 else min(max(channels // 8, 16), 128)


def find_layer_sites(blocks: Sequence[BlockSite]) -> tuple[GateSite, ...]:
    """Return one site per residual block: its whole branch."""
    return tuple(GateSite(block.name, "layer", 1, 1, 0, block) for block in blocks)


def find_first_layer_sites(channels: Channels, blocks: Sequence[BlockSite]) -> tuple[GateSite, ...]:
    """Return the channels that the first layer of each residual branch writes, with a gate for each of them.

    Blocks have none where the channels of that layer are those of the stream (a depthwise convolution) or
    cannot be told apart.

    Args:
        channels: The channels of the network.
        blocks: Its residual blocks.
    """
    nodes = {node.name: node for node in channels.traced.graph.nodes}
    place = _positions(channels, blocks)
    written: dict[str, list[ChannelGroup]] = {}
    for group in channels.groups:
        for member in group.of_kind("write"):
            written.setdefault(member.target, []).append(group)
    sites = []
    for block in blocks:
        inside = nodes_between(nodes[block.source], nodes[block.branch])
        layers = (str(node.target) for node in nodes.values() if node in inside)
        groups = next((written[layer] for layer in layers if layer in written), [])
        if len(groups) != 1 or groups[0].frozen_reason or place[groups[0].name] != ("channels", block):
            continue
        sites.append(GateSite(groups[0].name, "channels", groups[0].size, 1, 0, block))
    return tuple(sites)


def _positions(
    channels: Channels, blocks: Sequence[BlockSite]
) -> Mapping[str, tuple[Position | None, BlockSite | None]]:
    """Group name -> its position and block, for groups in blocks; no position for streams."""
    ends = find_block_groups(channels)
    nodes = {node.name: node for node in channels.traced.graph.nodes}
    found: dict[str, tuple[Position | None, BlockSite | None]] = {}
    for block in blocks:
        inside = nodes_between(nodes[block.source], nodes[block.branch])
        written = {("write", str(node.target)) for node in inside if node.op == "call_module"}
        for group in channels.groups:
            if any((member.kind, member.target) in written for member in group.members):
                found[group.name] = ("channels", block)
        if block.name in ends:
            groups = ends[block.name]
            named: tuple[tuple[tuple[str, ...], Position | None], ...] = (
                (groups.input, "input"),
                (groups.output, "output"),
                # A projection that reads less of the stream was not studied.
                (groups.shortcut_input, None),
                (groups.shortcut_output, "shortcut"),
            )
            found |= {name: (position, block) for names, position in named for name in names}
    for block in blocks:
        for end in (block.source, block.add):
            found |= dict.fromkeys(channels.groups_at(nodes[end]), (None, None))
    return found
