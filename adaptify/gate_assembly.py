"""From a step of a plan that places gates to the network with those gates, untrained."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from adaptify.errors import ModelError
from adaptify.gates.gumbel import DependentGates, IndependentGates, sample_gates
from adaptify.gates.mask_net import MaskNet
from adaptify.gates.salience import SalienceNet, leaky_relu1
from adaptify.graph.axes import channel_axis
from adaptify.graph.channels import Channels, find_channels
from adaptify.graph.cost import CostModel
from adaptify.graph.gate_sites import GateSite
from adaptify.graph.gating import Decide, Decider
from adaptify.graph.sites import BlockSite, find_blocks, first_layer
from adaptify.graph.trace import Traced
from adaptify.plan import GatePlace, GatesStep, PlaceGates, PlaceMaskNet, PlaceSaliences
from adaptify.runtime.gate_policy import GatePolicy, Policy, SaliencePolicy
from adaptify.runtime.gated import GatedModel

CHANGED = "The code that builds the network has changed since the plan was made."
"""What to say where a plan names what is not in the network."""


@dataclass(frozen=True)
class _Kind:
    """What is particular to the gates of a step.

    Attributes:
        deciders: Makes what decides: (network, step, sites) -> deciders.
        sample: How gates are drawn in training, unless the method says otherwise.
        policy: How they decide in evaluation, unless the plan says otherwise.
    """

    deciders: Callable[[Traced, Any, tuple[GateSite, ...]], list[Decider]]
    sample: Decide
    policy: Policy


def place_gates(traced: Traced, step: GatesStep, policy: Policy | None = None) -> GatedModel:
    """Put fresh gates into the network.

    Raises:
        ModelError: A site is not in the network, or has another size than the plan says.
    """
    cost = CostModel(traced)
    blocks = {block.name: block for block in find_blocks(traced, cost)}
    by_channel = any(place.position != "layer" for place in step.sites)
    channels = find_channels(traced) if by_channel else None
    sites = tuple(_site(place, channels, blocks) for place in step.sites)
    whole = set()
    if isinstance(step, PlaceSaliences) and step.execution == "parallel":
        whole = {first_layer(traced, site.block, cost).name for site in sites if site.block is not None}
    kind = _KINDS[type(step)]
    deciders = kind.deciders(traced, step, sites)
    return GatedModel(traced, deciders, kind.sample, policy or kind.policy, channels, whole)


def _gumbel(traced: Traced, step: PlaceGates, sites: tuple[GateSite, ...]) -> list[Decider]:
    if not step.dependent:
        count = sum(site.gates for site in sites)
        return [Decider("all", IndependentGates(count, step.open_probability), None, sites)]
    deciders = []
    groups = _by_block(sites) if step.per == "block" else _by_stage(traced, sites)
    for block, own in groups:
        channels, axis = _seen(traced, block)
        module = DependentGates(
            channels,
            sum(site.gates for site in own),
            hidden=step.hidden,
            open_probability=step.open_probability,
            channel_axis=axis,
        )
        deciders.append(_decider(block, module, own))
    return deciders


def _mask_net(traced: Traced, step: PlaceMaskNet, sites: tuple[GateSite, ...]) -> list[Decider]:
    first, _ = _by_block(sites)[0]
    if step.source is not None:
        names = [node.name for node in traced.graph.nodes]
        before = names[: names.index(first.branch)]
        if step.source not in before or not traced.node(step.source).meta.get("shape"):
            raise ModelError(
                f"the plan decides from {step.source}, which is no feature map in front of the blocks",
                CHANGED,
            )
        first = replace(first, source=step.source)
    channels, axis = _seen(traced, first)
    module = MaskNet(
        channels,
        sum(site.gates for site in sites),
        pool=step.pool,
        filters=step.filters,
        channel_axis=axis,
        spatial_dims=len(traced.node(first.source).meta["shape"]) - 2,
    )
    return [Decider("mask_net", module, first.source, sites)]


def _saliences(traced: Traced, step: PlaceSaliences, sites: tuple[GateSite, ...]) -> list[Decider]:
    deciders = []
    for block, own in _by_block(sites):
        channels, axis = _seen(traced, block)
        module = SalienceNet(channels, sum(site.gates for site in own), channel_axis=axis)
        deciders.append(_decider(block, module, own))
    return deciders


_KINDS: Mapping[type[GatesStep], _Kind] = {
    PlaceGates: _Kind(_gumbel, sample_gates, GatePolicy()),
    PlaceMaskNet: _Kind(_mask_net, sample_gates, GatePolicy()),
    PlaceSaliences: _Kind(_saliences, leaky_relu1, SaliencePolicy()),
}


def _decider(block: BlockSite, module: Any, sites: tuple[GateSite, ...]) -> Decider:
    return Decider(block.name.replace(".", "/"), module, block.source, sites)


def _by_block(sites: tuple[GateSite, ...]) -> list[tuple[BlockSite, tuple[GateSite, ...]]]:
    """The sites of each block, in the order in which blocks first appear."""
    found: dict[str, tuple[BlockSite, list[GateSite]]] = {}
    for site in sites:
        if site.block is None:
            raise ModelError(f"gates that look at samples need a block, and {site.name} is in none", CHANGED)
        found.setdefault(site.block.name, (site.block, []))[1].append(site)
    return [(block, tuple(own)) for block, own in found.values()]


def _by_stage(traced: Traced, sites: tuple[GateSite, ...]) -> list[tuple[BlockSite, tuple[GateSite, ...]]]:
    """The same with all blocks in a row that read the same shape taken together, under the first of them."""
    stages = []
    for _, group in itertools.groupby(
        _by_block(sites), key=lambda item: traced.node(item[0].source).meta["shape"]
    ):
        items = list(group)
        stages.append((items[0][0], tuple(site for _, own in items for site in own)))
    return stages


def _seen(traced: Traced, block: BlockSite) -> tuple[int, int]:
    """Channels of what enters the block, and their axis."""
    source = traced.node(block.source)
    axis = channel_axis(traced, source)
    if axis is None:
        raise ModelError(
            f"gates cannot look at what enters {block.name}: its channel axis is not known",
            "Put gates at other blocks.",
        )
    return source.meta["shape"][axis], axis


def _site(place: GatePlace, channels: Channels | None, blocks: Mapping[str, BlockSite]) -> GateSite:
    block = blocks.get(place.block) if place.block is not None else None
    if place.block is not None and block is None:
        raise ModelError(f"the plan puts gates into the block {place.block}, which is not there", CHANGED)
    if place.position == "layer":
        if block is None:
            raise ModelError(f"the plan closes the branch {place.name}, but names no block", CHANGED)
    else:
        assert channels is not None
        group = channels.group(place.name)
        if group.size != place.size or group.frozen_reason is not None:
            raise ModelError(
                f"the plan has {place.size} channels to close at {place.name}; there are "
                f"{group.size if group.frozen_reason is None else 'none that can be closed'}",
                CHANGED,
            )
    return GateSite(place.name, place.position, place.size, place.filters, place.always_open, block)
