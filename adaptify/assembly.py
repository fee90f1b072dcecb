"""From the steps of a plan to the network that they describe, with fresh gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from adaptify.errors import ModelError
from adaptify.gate_assembly import CHANGED, place_gates
from adaptify.gates.conv_head import ConvHead
from adaptify.gates.exit_head import ExitHead
from adaptify.gates.learned_exit import ExitGate, LearnedExit
from adaptify.graph.channels import find_channels
from adaptify.graph.cost import CostModel
from adaptify.graph.decouple import decouple
from adaptify.graph.removal_plan import keep_from_json
from adaptify.graph.sites import BlockSite, ExitSite, find_blocks, find_exits
from adaptify.graph.surgery import remove_blocks, remove_channels
from adaptify.graph.trace import Traced
from adaptify.plan import (
    BoostExits,
    DecoupleBlocks,
    ExitsStep,
    GatesStep,
    PlaceExit,
    RemoveBlocks,
    RemoveChannels,
    Step,
)
from adaptify.runtime.adaptive import AdaptiveModel, Exit
from adaptify.runtime.gate_policy import policy_from_json
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.policy import ThresholdPolicy

Adapted = AdaptiveModel | GatedModel
"""A network made by a plan: with exits or as it is, or with gates that close parts of it."""


def assemble(traced: Traced, steps: Sequence[Step], policy: Mapping[str, Any] | None = None) -> Adapted:
    """Do what the steps of a plan say, in their order, and put the gates that they name into the result.

    Args:
        traced: The network that the steps start from.
        steps: What is done to it; gates come last, and are of one kind.
        policy: How gates decide, as JSON; None for their default.

    Raises:
        ModelError: A step does not fit the network that those before it leave.
    """
    body = [step for step in steps if not isinstance(step, (ExitsStep, GatesStep))]
    placed = steps[len(body) :]
    exits = [step for step in placed if isinstance(step, PlaceExit)]
    boosts = [step for step in placed if isinstance(step, BoostExits)]
    gates = [step for step in placed if isinstance(step, GatesStep)]
    if list(steps[: len(body)]) != body or max(len(gates), len(boosts)) > 1 or (gates and len(placed) > 1):
        raise ModelError(
            "the plan changes the network after it has put gates into it, or mixes gates of several kinds",
            "The file is damaged: gates come last.",
        )
    traced = reshape(traced, body)
    if gates:
        return place_gates(traced, gates[0], None if policy is None else policy_from_json(policy))
    limits = None if policy is None else ThresholdPolicy.from_json(policy)
    heads = place_exits(traced, exits)
    if not boosts:
        return AdaptiveModel(traced, heads, limits)
    for item in heads:
        _silence(item.head)
    return AdaptiveModel(traced, heads, limits, boost=boosts[0].temperatures)


def _silence(head: nn.Module | None) -> None:
    """Let a fresh head say 0: the sum of all exits, which is the output, is what the network says."""
    if isinstance(head, (ExitHead, ConvHead)):
        nn.init.zeros_(head.linear.weight)
        nn.init.zeros_(head.linear.bias)


MOST_RESHAPES = 24
"""How often layers may be taken apart or out. Each takes a moment, and a file could ask for any number."""


def reshape(traced: Traced, steps: Sequence[Step]) -> Traced:
    """Return the network as the steps that change its layers leave it; gates are passed over.

    Raises:
        ModelError: A step does not fit the network that those before it leave, or there are too many.
    """
    shaping = sum(isinstance(step, (DecoupleBlocks, RemoveBlocks, RemoveChannels)) for step in steps)
    if shaping > MOST_RESHAPES:
        raise ModelError(
            f"the network was reshaped {shaping} times, and {MOST_RESHAPES} are the most that is done again",
            "Prune the network that it came from, once, to the target of the last time.",
        )
    for step in steps:
        if isinstance(step, DecoupleBlocks):
            traced = decouple(traced, _blocks(traced, step.blocks))
        elif isinstance(step, RemoveBlocks):
            traced = remove_blocks(traced, _blocks(traced, step.blocks))
        elif isinstance(step, RemoveChannels):
            traced = remove(traced, step)
    return traced


def _blocks(traced: Traced, names: Sequence[str]) -> list[BlockSite]:
    blocks = {block.name: block for block in find_blocks(traced, CostModel(traced))}
    for name in names:
        if name not in blocks:
            raise ModelError(f"the plan names the block {name}, which is not in the network", CHANGED)
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
                CHANGED,
            )
        chosen.append((site, step))
    order = {name: index for index, name in enumerate(sites)}
    return [
        Exit(site, _exit_head(site, step))
        for site, step in sorted(chosen, key=lambda pair: order[pair[0].name])
    ]


def _exit_head(site: ExitSite, step: PlaceExit) -> nn.Module:
    convolutional = step.head == "convolutional"
    if (convolutional or step.gate) and not site.is_map:
        raise ModelError(
            f"{site.name} yields no feature map (N, C, H, W), which "
            f"{'a convolutional head' if convolutional else 'a learned gate'} needs",
            "Use gates.head=linear there, without gates, or name other sites.",
        )
    head: nn.Module = (
        ConvHead(site.channels, step.classes, width=step.width)
        if convolutional
        else ExitHead(site.channels, step.classes, pool=step.pool, channel_axis=site.channel_axis)
    )
    return LearnedExit(head, ExitGate(site.channels, width=step.width)) if step.gate else head
