"""From the steps of a plan to the network that they describe, with fresh gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from adaptify.errors import ModelError
from adaptify.gates.exit_head import ExitHead
from adaptify.gates.gumbel import DependentGates, IndependentGates, sample_gates
from adaptify.graph.axes import channel_axis
from adaptify.graph.channels import Channels, find_channels
from adaptify.graph.cost import CostModel
from adaptify.graph.decouple import decouple
from adaptify.graph.gate_sites import GateSite
from adaptify.graph.gating import Decider
from adaptify.graph.removal_plan import keep_from_json
from adaptify.graph.sites import BlockSite, ExitSite, find_blocks, find_exits
from adaptify.graph.surgery import remove_blocks, remove_channels
from adaptify.graph.trace import Traced
from adaptify.plan import (
    DecoupleBlocks,
    GatePlace,
    PlaceExit,
    PlaceGates,
    RemoveBlocks,
    RemoveChannels,
    Step,
)
from adaptify.runtime.adaptive import AdaptiveModel, Exit
from adaptify.runtime.gate_policy import GatePolicy
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.policy import ThresholdPolicy

Adapted = AdaptiveModel | GatedModel
"""A network made by a plan: with exits or as it is, or with gates that close parts of it."""

_CHANGED = "The code that builds the network has changed since the plan was made."


def assemble(traced: Traced, steps: Sequence[Step], policy: Mapping[str, Any] | None = None) -> Adapted:
    """Do what the steps of a plan say, in their order, and put the gates that they name into the result.

    Args:
        traced: The network that the steps start from.
        steps: What is done to it; gates come last, and are of one kind.
        policy: How gates decide, as JSON; None for their default.

    Raises:
        ModelError: A step does not fit the network that those before it leave.
    """
    body = [step for step in steps if not isinstance(step, (PlaceExit, PlaceGates))]
    placed = steps[len(body) :]
    exits = [step for step in placed if isinstance(step, PlaceExit)]
    gates = [step for step in placed if isinstance(step, PlaceGates)]
    if list(steps[: len(body)]) != body or len(gates) > 1 or (gates and exits):
        raise ModelError(
            "the plan changes the network after it has put gates into it, or mixes gates of several kinds",
            "The file is damaged: gates come last.",
        )
    traced = reshape(traced, body)
    if gates:
        return place_gates(traced, gates[0], None if policy is None else GatePolicy.from_json(policy))
    limits = None if policy is None else ThresholdPolicy.from_json(policy)
    return AdaptiveModel(traced, place_exits(traced, exits), limits)


def reshape(traced: Traced, steps: Sequence[Step]) -> Traced:
    """Return the network as the steps that change its layers leave it; gates are passed over.

    Raises:
        ModelError: A step does not fit the network that those before it leave.
    """
    for step in steps:
        if isinstance(step, DecoupleBlocks):
            traced = decouple(traced, _blocks(traced, step.blocks))
        elif isinstance(step, RemoveBlocks):
            traced = remove_blocks(traced, _blocks(traced, step.blocks))
        elif isinstance(step, RemoveChannels):
            traced = remove(traced, step)
    return traced


def place_gates(traced: Traced, step: PlaceGates, policy: GatePolicy | None = None) -> GatedModel:
    """Put fresh gates into the network.

    Gates that look at samples are decided block by block, each block's from what enters it; the others all
    at once.

    Raises:
        ModelError: A site is not in the network, or has another size than the plan says.
    """
    blocks = {block.name: block for block in find_blocks(traced, CostModel(traced))}
    by_channel = any(place.position != "layer" for place in step.sites)
    channels = find_channels(traced) if by_channel else None
    sites = [_site(place, channels, blocks) for place in step.sites]
    if not step.dependent:
        count = sum(site.gates for site in sites)
        deciders = [Decider("all", IndependentGates(count, step.open_probability), None, tuple(sites))]
        return GatedModel(traced, deciders, sample_gates, policy, channels)
    by_block: dict[str, list[GateSite]] = {}
    for site in sites:
        assert site.block is not None
        by_block.setdefault(site.block.name, []).append(site)
    deciders = []
    for name, own in by_block.items():
        source = traced.node(blocks[name].source)
        axis = channel_axis(traced, source)
        if axis is None:
            raise ModelError(f"gates cannot look at what enters {name}: its channel axis is not known")
        module = DependentGates(
            source.meta["shape"][axis],
            sum(site.gates for site in own),
            hidden=step.hidden,
            open_probability=step.open_probability,
            channel_axis=axis,
        )
        deciders.append(Decider(name.replace(".", "/"), module, source.name, tuple(own)))
    return GatedModel(traced, deciders, sample_gates, policy, channels)


def _site(place: GatePlace, channels: Channels | None, blocks: Mapping[str, BlockSite]) -> GateSite:
    block = blocks.get(place.block) if place.block is not None else None
    if place.block is not None and block is None:
        raise ModelError(f"the plan puts gates into the block {place.block}, which is not there", _CHANGED)
    if place.position == "layer":
        if block is None:
            raise ModelError(f"the plan closes the branch {place.name}, but names no block", _CHANGED)
    else:
        assert channels is not None
        group = channels.group(place.name)
        if group.size != place.size or group.frozen_reason is not None:
            raise ModelError(
                f"the plan has {place.size} channels to close at {place.name}; there are "
                f"{group.size if group.frozen_reason is None else 'none that can be closed'}",
                _CHANGED,
            )
    return GateSite(place.name, place.position, place.size, place.filters, place.always_open, block)


def _blocks(traced: Traced, names: Sequence[str]) -> list[BlockSite]:
    blocks = {block.name: block for block in find_blocks(traced, CostModel(traced))}
    for name in names:
        if name not in blocks:
            raise ModelError(f"the plan names the block {name}, which is not in the network", _CHANGED)
    return [blocks[name] for name in names]


def remove(traced: Traced, step: RemoveChannels) -> Traced:
    """Return the network without the channels that the step takes out.

    Raises:
        ModelError: The step does not fit the network.
    """
    channels = find_channels(traced)
    keep: dict[str, Tensor] = {}
    for name, entry in step.keep.items():  # one after the other: sizes are checked before they add up
        keep |= keep_from_json(channels, {name: {"size": entry.size, "kept": list(entry.kept)}})
    return remove_channels(channels, keep)


def place_exits(traced: Traced, steps: Sequence[PlaceExit]) -> list[Exit]:
    """Make the exits of the steps, in the order of the network, with fresh heads.

    Raises:
        ModelError: A site is not in the network, or has other channels than the plan says.
    """
    sites = {site.name: site for site in find_exits(traced, CostModel(traced))}
    chosen: list[tuple[ExitSite, PlaceExit]] = []
    for step in steps:
        site = sites.get(step.site)
        if site is None or site.channels != step.channels:
            found = "is not in the network" if site is None else f"has {site.channels} channels there"
            raise ModelError(
                f"the plan puts an exit at {step.site} ({step.channels} channels), which {found}",
                _CHANGED,
            )
        chosen.append((site, step))
    order = {name: index for index, name in enumerate(sites)}
    return [
        Exit(site, ExitHead(site.channels, step.classes, pool=step.pool, channel_axis=site.channel_axis))
        for site, step in sorted(chosen, key=lambda pair: order[pair[0].name])
    ]
