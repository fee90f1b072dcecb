"""`inspect`: what is in a network, and where gates can go, before any work."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import fx, nn

from adaptify.graph.channel_cost import ChannelCost
from adaptify.graph.channels import find_channels
from adaptify.graph.placement import default_exits
from adaptify.graph.sites import BlockSite, ExitSite, find_blocks, find_exits
from adaptify.pipeline.prepare import Network
from adaptify.pipeline.suitable import Suitability, suitable_methods
from adaptify.runtime.adaptive import AdaptiveModel


@dataclass(frozen=True)
class ModuleFacts:
    """One module of the tree.

    Attributes:
        name: Qualified name ("" for the network itself).
        type: Class name.
        shape: Shape of its output for one sample, or None when it has no single output.
        parameters: Number of parameters in it.
        macs: MACs in it, for one sample.
    """

    name: str
    type: str
    shape: tuple[int, ...] | None
    parameters: int
    macs: int


@dataclass(frozen=True)
class GroupFacts:
    """Channels that can only be removed together.

    Attributes:
        name: Name of the first layer that writes them.
        channels: How many there are.
        saves: MACs that are saved, for one sample, where one of them is left.
    """

    name: str
    channels: int
    saves: int


@dataclass(frozen=True)
class GateFacts:
    """Gates that the network has already.

    Attributes:
        name: Name of the channel group, or of the residual block.
        position: What is closed there.
        gates: Number of gates.
        saves: MACs that are saved, for one sample, where all of them are closed.
    """

    name: str
    position: str
    gates: int
    saves: int


@dataclass(frozen=True)
class Inspection:
    """A network as `adaptify inspect` shows it.

    Attributes:
        architecture: Its name.
        kwargs: Arguments of its builder.
        checkpoint: The file.
        input_shape: (C, H, W).
        parameters: Number of parameters.
        macs: MACs for one sample.
        modules: All modules that run, in the order of the tree.
        exits: Where samples can leave.
        default_exits: Names of the exits that are placed unless others are named.
        own_exits: Whether those are exits that the network has of its own.
        placed: Exits that the network has already, and their thresholds (None: never taken).
        blocks: The residual blocks.
        groups: The groups of channels that can be removed or gated.
        gates: The gates that the network has already, in its order.
        methods: What each method would make of it, those that suit it first.
        notes: What loading and tracing had to decide.
    """

    architecture: str
    kwargs: dict[str, Any]
    checkpoint: str
    input_shape: tuple[int, int, int]
    parameters: int
    macs: int
    modules: tuple[ModuleFacts, ...]
    exits: tuple[ExitSite, ...]
    default_exits: tuple[str, ...]
    own_exits: bool
    placed: dict[str, float | None]
    blocks: tuple[BlockSite, ...]
    groups: tuple[GroupFacts, ...]
    gates: tuple[GateFacts, ...]
    methods: tuple[Suitability, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All facts as JSON values."""
        return {"format": "adaptify.inspection", "version": 1, **asdict(self)}


def inspect(network: Network) -> Inspection:
    """Find out what is in a network and where gates can go."""
    traced, cost = network.traced, network.cost
    own = tuple(item.site for item in AdaptiveModel(traced, cost=cost).exits)
    exits = own or find_exits(traced, cost)
    chosen = own or default_exits(traced, cost, exits)
    return Inspection(
        architecture=network.architecture.name,
        kwargs=dict(network.architecture.kwargs),
        checkpoint=network.source.checkpoint,
        input_shape=traced.input_shape,
        parameters=sum(parameter.numel() for parameter in traced.root.parameters()),
        macs=cost.total,
        modules=_modules(network),
        exits=exits,
        default_exits=tuple(site.name for site in chosen),
        own_exits=bool(own),
        placed=dict(network.placed),
        blocks=find_blocks(traced, cost),
        groups=() if own else _groups(network),
        gates=_gates(network),
        methods=suitable_methods(network),
        notes=network.notes,
    )


def _groups(network: Network) -> tuple[GroupFacts, ...]:
    cost = ChannelCost(find_channels(network.traced), network.cost)
    found = []
    for index, (name, size) in enumerate(zip(cost.names, cost.sizes.tolist(), strict=True)):
        counts = cost.sizes.clone()
        counts[index] = 1
        found.append(GroupFacts(name, size, cost.total - int(cost.of_counts(counts))))
    return tuple(found)


def _gates(network: Network) -> tuple[GateFacts, ...]:
    gated = network.gated
    if gated is None:
        return ()
    total = gated.gate_cost.total
    return tuple(
        GateFacts(site.name, site.position, site.gates, total - gated.gate_cost.without(index))
        for index, site in enumerate(gated.sites)
    )


def _modules(network: Network) -> tuple[ModuleFacts, ...]:
    """Modules of the tree that take part in evaluation, with what is spent in them."""
    macs: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...] | None] = {}
    for node in network.traced.graph.nodes:
        if node.op == "output":
            continue
        for path in _paths(node):
            macs[path] = macs.get(path, 0) + network.cost.macs[node.name]
            # The last node of a module in the graph is its output.
            shape = node.meta["shape"]
            shapes[path] = tuple(shape[1:]) if shape is not None else shapes.get(path)
    return tuple(
        ModuleFacts(
            name=name,
            type=type(module).__name__,
            shape=shapes[name],
            parameters=_parameters(module),
            macs=macs[name],
        )
        for name, module in network.traced.root.named_modules()
        if name in macs
    )


def _paths(node: fx.Node) -> list[str]:
    parts = node.meta["path"].split(".") if node.meta["path"] else []
    return [".".join(parts[:count]) for count in range(len(parts) + 1)]


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
