"""The adaptive network: a backbone with gates, and a policy that turns their decisions into skipped work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaptify.errors import ModelError
from adaptify.gates.exit_head import ExitHead
from adaptify.graph.cost import CostModel, count_module
from adaptify.graph.program import compile_graph
from adaptify.graph.segments import cut
from adaptify.graph.sites import ExitSite
from adaptify.graph.trace import Traced
from adaptify.runtime.compaction import take_rows
from adaptify.runtime.policy import ThresholdPolicy, never_leave
from adaptify.runtime.view import NetworkView


@dataclass(frozen=True)
class Exit:
    """An exit head at its site."""

    site: ExitSite
    head: ExitHead


class Outcome(NamedTuple):
    """What an adaptive run gives.

    Attributes:
        logits: (N, M), each row from the exit where the sample left; in the order of the batch.
        exit_index: (N,) int64, index of that exit; the number of exits for those that ran to the end.
    """

    logits: Tensor
    exit_index: Tensor


class AdaptiveModel(NetworkView):
    """A network whose samples can leave early.

    In evaluation, `model(images)` maps (N, C, H, W) to logits (N, M) under `model.policy`: rows that
    leave are taken out of the batch, and the rest goes on in a smaller one. In training it runs
    everything and returns `(logits, {exit name: logits})`.

    Attributes:
        exits: The exits, in the order of the network.
        policy: When to leave. May be replaced between batches.
    """

    def __init__(
        self, traced: Traced, exits: Sequence[Exit] = (), policy: ThresholdPolicy | None = None
    ) -> None:
        """Put `exits` (in the order of the network) into `traced`; never leaving, by default.

        Raises:
            ModelError: The backbone does not map a batch of images to (N, M) scores, or a site is not
                a place where rows can leave.
        """
        super().__init__(traced, {item.site.name.replace(".", "/"): item.head for item in exits})
        self.exits = tuple(exits)
        self.policy = policy or never_leave(len(exits))
        self._segments, self._positions = _compile(traced, self.exits)
        self.train(traced.root.training)

    def forward(self, images: Tensor) -> Any:
        """Logits (N, M) in evaluation; `(logits, {exit name: logits})` in training."""
        return self.dense(images) if self.training else self.run(images).logits

    def run(self, images: Tensor) -> Outcome:
        """Run (N, C, H, W) under the policy; work behind an exit is done for the rows that stay only.

        One synchronisation per exit on an accelerator (the number of rows that stay), none on a CPU.
        """
        policy = self.policy
        count = images.shape[0]
        state: tuple[Tensor, ...] = (images.contiguous(memory_format=self.memory_format),)
        # Rows are kept in the order in which they end: those that still run first, then those that left, the
        # last to leave first. Small operations cost as much as a layer of a small network: few are used.
        order: Tensor | None = None
        active = count
        left: list[tuple[int, Tensor]] = []
        for index, segment in enumerate(self._segments[:-1]):
            state = segment(self.traced.root, *state)
            if not policy.enabled(index):
                continue
            logits = self.exits[index].head(state[self._positions[index]])
            leaving = policy.leaves(index, policy.rate(index, logits))
            staying = active - int(leaving.sum())
            if staying == active:
                continue
            if staying == 0:
                left.append((index, logits))
                active = 0
                break
            # Staying rows first, in their order: one sort gives both groups without asking for their sizes.
            ranked = leaving.to(torch.uint8).argsort(stable=True)
            kept, gone = ranked[:staying], ranked[staying:]
            left.append((index, logits.index_select(0, gone)))
            order = ranked if order is None else torch.cat([order[:active][ranked], order[active:]])
            state = tuple(take_rows(tensor, kept) for tensor in state)
            active = staying
        if active:
            (final,) = self._segments[-1](self.traced.root, *state)
            left.append((len(self.exits), final))
        return _outcome(left, order)

    def dense(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Run everything for every row: the network's logits (N, M) and those of each exit by name."""
        return self._walk(images, lambda head, tensor: head(tensor))

    def pooled(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Run everything: the network's logits (N, M) and each exit's pooled feature (N, D) by name."""
        return self._walk(images, lambda head, tensor: head.pool(tensor))

    def _walk(
        self, images: Tensor, read: Callable[[ExitHead, Tensor], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        state: tuple[Tensor, ...] = (images.contiguous(memory_format=self.memory_format),)
        found: dict[str, Tensor] = {}
        for segment, item, position in zip(self._segments, self.exits, self._positions, strict=False):
            state = segment(self.traced.root, *state)
            found[item.site.name] = read(item.head, state[position])
        (final,) = self._segments[-1](self.traced.root, *state)
        return final, found

    def policy_json(self) -> dict[str, Any] | None:
        """The policy as JSON, or None without exits."""
        return self.policy.to_json() if self.exits else None

    @cached_property
    def cost(self) -> CostModel:
        """MACs of the backbone, node by node."""
        return CostModel(self.backbone())

    @cached_property
    def gate_macs(self) -> tuple[int, ...]:
        """MACs of each exit head for one sample."""
        shapes = [self.traced.node(item.site.node).meta["shape"] for item in self.exits]
        return tuple(
            count_module(item.head, (1, *shape[1:])) for item, shape in zip(self.exits, shapes, strict=True)
        )

    def exit_macs(self, policy: ThresholdPolicy | None = None) -> tuple[int, ...]:
        """MACs of one sample that leaves at exit 0, 1, ..., or runs to the end: `len(exits) + 1` numbers.

        The gates a sample passes count; a gate that `policy` switches off is not computed. Without a
        policy all gates count.
        """
        gates = 0
        macs = []
        for index, (item, gate) in enumerate(zip(self.exits, self.gate_macs, strict=True)):
            gates += gate if policy is None or policy.enabled(index) else 0
            macs.append(item.site.macs_before + gates)
        return (*macs, self.cost.total + gates)


def _outcome(left: Sequence[tuple[int, Tensor]], order: Tensor | None) -> Outcome:
    """Put the logits of the exits (exit index and (K, M), first to leave first) into the order of the batch.

    `order` holds for each row, last to leave first, its place in the batch; None: they never changed places.
    """
    last_first = left[::-1]
    logits = torch.cat([part for _, part in last_first]) if len(left) > 1 else left[0][1]
    places = [index for index, part in last_first for _ in range(part.shape[0])]
    exit_index = torch.tensor(places, dtype=torch.int64, device=logits.device)
    if order is None:
        return Outcome(logits, exit_index)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(places), device=order.device))
    return Outcome(logits.index_select(0, back), exit_index.index_select(0, back))


def _compile(
    traced: Traced, exits: Sequence[Exit]
) -> tuple[tuple[Callable[..., tuple[Tensor, ...]], ...], tuple[int, ...]]:
    """The segments between exits as functions, and where each exit's tensor is in its segment's results."""
    nodes = [traced.node(item.site.node) for item in exits]
    segments = cut(traced.graph, nodes)
    positions = []
    for segment, node in zip(segments, nodes, strict=False):
        stuck = [name for name in segment.outputs if not traced.node(name).meta["batched"]]
        if stuck:
            raise ModelError(f"rows cannot leave at {node.meta['name']}: {stuck[0]} is not split by sample")
        positions.append(segment.outputs.index(node.name))
    return tuple(compile_graph(segment.graph) for segment in segments), tuple(positions)
