"""Which methods suit a network: each is asked to put its gates into it, and what it answers is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from adaptify.assembly import assemble
from adaptify.errors import AdaptifyError
from adaptify.graph.channel_cost import ChannelCost
from adaptify.graph.channels import find_channels
from adaptify.methods import GatingMethod, JudgingMethod, Method, find_method, method_names
from adaptify.pipeline.prepare import Network, classes_of
from adaptify.pipeline.prune import refuse_exits
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.text import whole


@dataclass(frozen=True)
class Suitability:
    """What a method, with the options that it has by itself, would make of a network.

    Attributes:
        method: Its name.
        summary: One line about it.
        command: The command that uses it: `retrofit` or `prune`.
        places: What it would decide about, in words: `3 exits`; empty where it does not suit.
        least: MACs of a sample that is let go as early, or for which as much is closed, as can be: a part of
            the network's; None where it does not suit.
        reason: Why it does not suit; None where it does.
        hint: What could be done about that.
    """

    method: str
    summary: str
    command: str
    places: str = ""
    least: float | None = None
    reason: str | None = None
    hint: str | None = None


def suitable_methods(network: Network) -> tuple[Suitability, ...]:
    """Ask every method; those that suit the network come first."""
    found = [_asked(find_method(name), network) for name in method_names()]
    return tuple(sorted(found, key=lambda item: item.reason is not None))


def _asked(kind: type[Method[Any, Any]], network: Network) -> Suitability:
    judges = issubclass(kind, JudgingMethod)
    command = "prune" if judges else "retrofit"
    ask: Callable[[Method[Any, Any], Network], tuple[str, float]] = _channels if judges else _gates
    try:
        places, least = ask(kind(kind.Gates(), kind.Train()), network)
    except AdaptifyError as error:
        return Suitability(kind.name, kind.summary, command, reason=error.message, hint=error.hint)
    return Suitability(kind.name, kind.summary, command, places, least)


def _gates(method: Method[Any, Any], network: Network) -> tuple[str, float]:
    assert isinstance(method, GatingMethod)
    steps = method.place(network.traced, network.cost, classes_of(network))
    with torch.random.fork_rng(devices=()):
        model = assemble(network.traced.with_own_tensors(), steps)
    method.check(model)
    base = network.cost.total
    if isinstance(model, AdaptiveModel):
        count = len(model.exits)
        return f"{count} exit{'s' if count > 1 else ''}", model.exit_macs()[0] / base
    gates = sum(site.gates for site in model.sites)
    least = model.gate_cost.least + model.decider_macs
    return f"{whole(gates)} gate{'s' if gates > 1 else ''}", least / base


def _channels(method: Method[Any, Any], network: Network) -> tuple[str, float]:
    refuse_exits(network)
    channels = find_channels(network.traced)
    cost = ChannelCost(channels, network.cost)
    if not cost.names:
        reasons = "; ".join(list(channels.frozen_reasons)[:2]) or "it has no layers with channels"
        raise AdaptifyError(
            f"no channels can be removed: {reasons}", "Let samples leave early: adaptify retrofit."
        )
    least = int(cost.of_counts(torch.ones_like(cost.sizes)))  # one channel of each group
    return f"{whole(int(cost.sizes.sum()))} channels", least / network.cost.total
