"""A network with gates that close channels or residual branches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaptify.graph.channels import Channels, find_channels
from adaptify.graph.cost import CostModel, count_module
from adaptify.graph.gate_cost import GateCost
from adaptify.graph.gate_sites import GateSite
from adaptify.graph.gating import Decide, Decider, insert_gates
from adaptify.graph.own_exits import refuse_own_exits
from adaptify.graph.program import compile_graph
from adaptify.graph.trace import Traced
from adaptify.runtime.gate_policy import GatePolicy, Policy
from adaptify.runtime.view import NetworkView


class Decisions(NamedTuple):
    """What a gated network computed, and what its gates decided; K is the number of all gates.

    Attributes:
        logits: (N, M).
        odds: What the networks of the gates say, log-odds of being open or raw saliences: (K,) where gates
            decide for all samples alike, or (N, K).
        gates: The decisions, of the same shape, in [0, 1]: 0 is closed, more than 0 scales what is open.
    """

    logits: Tensor
    odds: Tensor
    gates: Tensor


class GatedModel(NetworkView):
    """A network some of whose channels, or residual branches, are closed by gates.

    In evaluation, `model(images)` maps (N, C, H, W) to logits (N, M) under `model.policy`. In training it
    returns `Decisions`, with gates drawn by `model.sample`.

    Attributes:
        deciders: What decides which gates.
        policy: How gates decide in evaluation. May be replaced between batches.
        sample: How gates are drawn in training: log-odds -> gates, with a gradient.
        whole: Names of nodes that run in full, whatever the gates say.
    """

    def __init__(
        self,
        traced: Traced,
        deciders: Sequence[Decider],
        sample: Decide,
        policy: Policy | None = None,
        channels: Channels | None = None,
        whole: Collection[str] = (),
    ) -> None:
        """Put gates into `traced`.

        Args:
            traced: The network.
            deciders: What decides which gates.
            sample: How gates are drawn in training.
            policy: How they decide in evaluation; by default by a threshold.
            channels: The channels of the network, where they are known.
            whole: Names of nodes that run in full, whatever the gates say.
        """
        refuse_own_exits(traced)
        super().__init__(traced, {decider.name: decider.module for decider in deciders})
        self.deciders = tuple(deciders)
        self.policy: Policy = policy or GatePolicy()
        self.sample = sample
        if channels is None and any(site.position != "layer" for site in self.sites):
            channels = find_channels(traced)
        self._channels = channels
        self.whole = frozenset(whole)
        graph = insert_gates(self.traced, channels, self.deciders, self._gates_name)
        self._program = compile_graph(graph)
        self.train(traced.root.training)

    @property
    def sites(self) -> tuple[GateSite, ...]:
        """The sites of all deciders, in the order in which decisions list their gates."""
        return tuple(site for decider in self.deciders for site in decider.sites)

    @property
    def per_sample(self) -> bool:
        """Whether gates look at the sample."""
        return any(decider.source is not None for decider in self.deciders)

    def forward(self, images: Tensor) -> Any:
        """Logits (N, M) in evaluation; `Decisions` in training."""
        return self.decide(images, self.sample) if self.training else self.run(images).logits

    def run(self, images: Tensor) -> Decisions:
        """Run (N, C, H, W) under the policy; an ensemble averages class probabilities, and its gates."""
        return ensemble(self.runs(images))

    def runs(self, images: Tensor) -> list[Decisions]:
        """Run (N, C, H, W) as often as the policy says: once, unless it is of an ensemble."""
        policy = self.policy  # read once: another thread may set it
        return [self.decide(images, policy.decide) for _ in range(policy.runs)]

    def decide(self, images: Tensor, decide: Decide) -> Decisions:
        """Run (N, C, H, W) with gates as `decide` makes them of their log-odds."""
        images = images.contiguous(memory_format=self.memory_format)
        logits, odds, gates = self._program(self.traced.root, images, decide)
        if not self.per_sample:
            return Decisions(logits, torch.cat(odds, -1), torch.cat(gates, -1))
        count = images.shape[0]
        return Decisions(logits, _by_sample(odds, count), _by_sample(gates, count))

    def odds(self) -> Tensor:
        """Log-odds (K,) of gates that look at nothing, without running the network."""
        return torch.cat([decider.module() for decider in self.deciders]).detach().cpu()

    def policy_json(self) -> dict[str, Any]:
        """The policy as JSON."""
        return self.policy.to_json()

    @cached_property
    def cost(self) -> CostModel:
        """MACs of the network without gates, node by node."""
        return CostModel(self.backbone())

    @cached_property
    def gate_cost(self) -> GateCost:
        """MACs as a function of all gates."""
        return GateCost(self.traced, self._channels, self.sites, self.cost, whole=self.whole)

    @cached_property
    def decider_macs(self) -> int:
        """MACs of deciding for one sample; none where gates look at nothing, as they can be frozen."""
        macs = 0
        for decider in self.deciders:
            if decider.source is not None:
                shape = self.traced.node(decider.source).meta["shape"]
                macs += count_module(decider.module, (1, *shape[1:]))
        return macs


def ensemble(runs: Sequence[Decisions]) -> Decisions:
    """Average the class probabilities and the gates of several runs; a single one is what it is."""
    if len(runs) == 1:
        return runs[0]
    mean = torch.stack([run.logits.softmax(1) for run in runs]).mean(0)
    return Decisions(mean.log(), runs[0].odds, torch.stack([run.gates for run in runs]).mean(0))


def _by_sample(parts: Sequence[Tensor], count: int) -> Tensor:
    return torch.cat([part.expand(count, -1) for part in parts], -1)
