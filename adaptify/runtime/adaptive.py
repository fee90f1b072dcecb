"""The adaptive network: a backbone with gates, and a policy that turns their decisions into skipped work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaptify.errors import UsageError
from adaptify.gates.exit_head import ExitHead
from adaptify.gates.gradient import scale_gradient
from adaptify.gates.learned_exit import LearnedExit
from adaptify.graph.cost import CostModel
from adaptify.graph.own_exits import find_own_exits
from adaptify.graph.trace import Traced
from adaptify.runtime.compaction import take_rows
from adaptify.runtime.exits import Exit, HeadCost, branch
from adaptify.runtime.policy import GATE, ThresholdPolicy, never_leave
from adaptify.runtime.spans import GATES, NETWORK, span
from adaptify.runtime.view import NetworkView

__all__ = ["AdaptiveModel", "Everything", "Exit", "Outcome"]


class Outcome(NamedTuple):
    """What an adaptive run gives.

    Attributes:
        logits: (N, M), each row from the exit where the sample left; in the order of the batch.
        exit_index: (N,) int64, index of that exit; the number of exits for those that ran to the end.
    """

    logits: Tensor
    exit_index: Tensor


class Everything(NamedTuple):
    """What running everything for every row gives.

    Attributes:
        logits: (N, M) of the output.
        exits: Name of an exit -> its logits (N, M).
        gates: Name of an exit with a learned gate -> log-odds (N,) of leaving there.
    """

    logits: Tensor
    exits: dict[str, Tensor]
    gates: dict[str, Tensor]


class AdaptiveModel(NetworkView):
    """A network whose samples can leave early.

    In evaluation, `model(images)` maps (N, C, H, W) to logits (N, M) under `model.policy`: rows that
    leave are taken out of the batch, and the rest goes on in a smaller one. In training it runs
    everything and returns `Everything`.

    With `boost`, the exits are an ensemble (BoostNet, eq. 8): exit n predicts F_n = t_n F_{n-1} + f_n, with
    f_n the logits of its own head; no gradient goes through F_{n-1}. The output is the last of them.

    Attributes:
        exits: The exits, in the order of the network.
        policy: When to leave. May be replaced between batches.
        boost: t_2, t_3, ...: one for every exit but the first, and one for the output; None: each exit
            predicts by itself.
        rescale_gradients: Whether in training the gradient that reaches what is computed up to exit n is the
            mean over the exits behind it, and not the sum (BoostNet, eq. 7); heads get their own in full.
    """

    def __init__(
        self,
        traced: Traced,
        exits: Sequence[Exit] = (),
        policy: ThresholdPolicy | None = None,
        *,
        boost: Sequence[float] | None = None,
        cost: CostModel | None = None,
    ) -> None:
        """Put `exits` (in the order of the network) into `traced`; never leaving, by default.

        Args:
            traced: The network. If it has exits of its own, those are its exits.
            exits: What is put into it.
            policy: When to leave.
            boost: See the attributes.
            cost: MACs of the network, where they cannot be counted on `traced`.

        Raises:
            ModelError: The backbone does not map a batch of images to (N, M) scores, or a site is not
                a place where rows can leave.
            UsageError: Exits are put into a network that has its own, or `boost` or the policy does not have
                one number per exit.
        """
        heads = {item.site.name.replace(".", "/"): item.head for item in exits if item.head is not None}
        super().__init__(traced, heads)
        if cost is not None:
            self.cost = cost
        own = find_own_exits(traced, self.cost) if traced.own_exits else ()
        if own and exits:
            raise UsageError(
                f"{type(traced.root).__name__} has {len(own)} exits of its own, and no others can be added",
                "Leave the sites out: its own exits are used.",
            )
        self.exits = tuple(Exit(item.site, None) for item in own) or tuple(exits)
        if boost is not None and len(boost) != len(self.exits):
            raise UsageError(
                f"{len(boost)} temperatures for an ensemble of {len(self.exits)} exits and the output",
                f"Give {len(self.exits)}: one for each but the first.",
            )
        self.boost = None if boost is None else tuple(boost)
        learned = bool(exits) and all(isinstance(item.head, LearnedExit) for item in exits)
        score = GATE if learned else "distance"
        self.policy: ThresholdPolicy = policy or never_leave(len(self.exits), score)
        self._check_length(self.policy)
        self.rescale_gradients = False
        self._segments, self._branches = branch(traced, self.exits, own)
        self.train(traced.root.training)

    def _check_length(self, policy: ThresholdPolicy) -> None:
        if len(policy.thresholds) != len(self.exits):
            raise UsageError(
                f"the policy has {len(policy.thresholds)} thresholds for {len(self.exits)} exits",
                "Give one threshold per exit, in order; inf for an exit never taken.",
            )

    def forward(self, images: Tensor) -> Any:
        """Logits (N, M) in evaluation; `Everything` in training."""
        return self.everything(images) if self.training else self.run(images).logits

    def run(self, images: Tensor) -> Outcome:
        """Run (N, C, H, W) under the policy; work behind an exit is done for the rows that stay only.

        One synchronisation per exit on an accelerator (the number of rows that stay), none on a CPU.

        Raises:
            UsageError: The policy asks for learned gates, and an exit has none; or it has more or fewer
                thresholds than there are exits.
        """
        if not self.exits or not len(images):  # nothing to decide
            final = self._walk(images, lambda index, read: None)
            return Outcome(final, torch.zeros(len(final), dtype=torch.int64, device=final.device))
        policy = self.policy
        self._check_length(policy)
        learned = policy.score == GATE
        state: tuple[Tensor, ...] = (images.contiguous(memory_format=self.memory_format),)
        # Rows are kept in the order in which they end: those that still run first, then those that left, the
        # last to leave first. Small operations cost as much as a layer of a small network: few are used.
        order: Tensor | None = None
        active = images.shape[0]
        left: list[tuple[int, Tensor]] = []
        ensemble: Tensor | None = None
        for index, (segment, item) in enumerate(zip(self._segments, self._branches, strict=False)):
            with span(NETWORK, index):
                produced = segment(self.traced.root, *state)
            state = produced[: item.live]
            enabled = policy.enabled(index)
            if not enabled and self.boost is None:
                continue
            read = [produced[position] for position in item.positions]
            logits: Tensor | None = None
            with span(GATES, index):
                if not learned or self.boost is not None:
                    logits = ensemble = self._boosted(index, item.logits(self.traced.root, *read), ensemble)
                if not enabled:
                    continue
                scores = self._odds(index, read) if logits is None or learned else policy.rate(index, logits)
                leaving = policy.leaves(index, scores)
                staying = active - int(leaving.sum())
            if staying == active:
                continue
            if staying == 0:
                left.append((index, item.logits(self.traced.root, *read) if logits is None else logits))
                active = 0
                break
            # Staying rows first, in their order: one sort gives both groups without asking for their sizes.
            ranked = leaving.to(torch.uint8).argsort(stable=True)
            kept, gone = ranked[:staying], ranked[staying:]
            if logits is None:  # only those that leave need a prediction
                rows = [take_rows(tensor, gone) for tensor in read]
                with span(GATES, index):
                    gone_logits = item.logits(self.traced.root, *rows)
            else:
                gone_logits = logits.index_select(0, gone)
            left.append((index, gone_logits))
            order = ranked if order is None else torch.cat([order[:active][ranked], order[active:]])
            state = tuple(take_rows(tensor, kept) for tensor in state)
            if self.boost is not None and ensemble is not None:
                ensemble = ensemble.index_select(0, kept)
            active = staying
        if active:
            with span(NETWORK, len(self.exits)):
                (final,) = self._segments[-1](self.traced.root, *state)
            left.append((len(self.exits), self._boosted(len(self.exits), final, ensemble)))
        return _outcome(left, order)

    def everything(self, images: Tensor) -> Everything:
        """Run everything for every row."""
        exits: dict[str, Tensor] = {}
        gates: dict[str, Tensor] = {}
        previous: Tensor | None = None

        def predict(index: int, read: Sequence[Tensor]) -> None:
            nonlocal previous
            name, item = self.exits[index].site.name, self._branches[index]
            exits[name] = previous = self._boosted(index, item.logits(self.traced.root, *read), previous)
            if item.gate is not None:
                gates[name] = item.gate(*read)

        final = self._walk(images, predict)
        return Everything(self._boosted(len(self.exits), final, previous), exits, gates)

    def dense(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Run everything for every row: the network's logits (N, M) and those of each exit by name."""
        found = self.everything(images)
        return found.logits, found.exits

    def pooled(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Run everything: the network's logits (N, M) and each exit's pooled feature (N, D) by name.

        For exits whose heads are `ExitHead`s.
        """
        found: dict[str, Tensor] = {}

        def pool(index: int, read: Sequence[Tensor]) -> None:
            head = self.exits[index].head
            assert isinstance(head, ExitHead)
            found[self.exits[index].site.name] = head.pool(*read)

        return self._walk(images, pool), found

    def _walk(self, images: Tensor, visit: Callable[[int, Sequence[Tensor]], None]) -> Tensor:
        """Run the trunk, show every exit what it reads, and return the logits of the network's last head."""
        state: tuple[Tensor, ...] = (images.contiguous(memory_format=self.memory_format),)
        for index, (segment, item) in enumerate(zip(self._segments, self._branches, strict=False)):
            produced = segment(self.traced.root, *state)
            behind = len(self.exits) - index  # exits after this one, the output among them
            if self.rescale_gradients:
                produced = tuple(scale_gradient(tensor, 1 / (behind + 1)) for tensor in produced)
            visit(index, [produced[position] for position in item.positions])
            state = produced[: item.live]
            if self.rescale_gradients:
                state = tuple(scale_gradient(tensor, behind) for tensor in state)
        (final,) = self._segments[-1](self.traced.root, *state)
        return final

    def _boosted(self, index: int, logits: Tensor, previous: Tensor | None) -> Tensor:
        if self.boost is None or previous is None:
            return logits
        return self.boost[index - 1] * previous.detach() + logits

    def _odds(self, index: int, read: Sequence[Tensor]) -> Tensor:
        gate = self._branches[index].gate
        if gate is None:
            raise UsageError(
                f"the exit {self.exits[index].site.name} has no learned gate to decide by",
                "Choose a score of its prediction: confidence, margin, distance or entropy.",
            )
        return gate(*read)

    def policy_json(self) -> dict[str, Any] | None:
        """The policy as JSON, or None without exits."""
        return self.policy.to_json() if self.exits else None

    @cached_property
    def cost(self) -> CostModel:
        """MACs of the backbone, node by node."""
        return CostModel(self.backbone())

    @cached_property
    def head_macs(self) -> tuple[HeadCost, ...]:
        """MACs of each exit for one sample: its prediction, and its gate."""
        return tuple(item.macs for item in self._branches)

    @property
    def gate_macs(self) -> tuple[int, ...]:
        """MACs of each exit for one sample that leaves there."""
        return tuple(sum(item) for item in self.head_macs)

    def exit_macs(self, policy: ThresholdPolicy | None = None) -> tuple[int, ...]:
        """MACs of one sample that leaves at exit 0, 1, ..., or runs to the end: `len(exits) + 1` numbers.

        The heads a sample passes count; one that `policy` switches off is not computed, and where learned
        gates decide, those that leave are the only ones that are predicted. Without a policy all heads count.
        """
        learned = policy is not None and policy.score == GATE and self.boost is None
        own = sum(
            item.logits for item, exit_ in zip(self.head_macs, self.exits, strict=True) if not exit_.head
        )
        passed = 0
        macs = []
        for index, (item, head) in enumerate(zip(self.exits, self.head_macs, strict=True)):
            computed = policy is None or policy.enabled(index) or self.boost is not None
            gates = head.gate if policy is None or policy.score == GATE else 0
            if computed and not learned:
                passed += head.logits
            passed += gates if computed else 0
            macs.append(item.site.macs_before + passed + (head.logits if learned else 0))
        return (*macs, self.cost.total - own + passed)

    @property
    def exit_nodes(self) -> frozenset[str]:
        """Names of the nodes of the network at which exits read, or that yield their logits."""
        read = {item.site.node for item in self.exits}
        return frozenset(read.union(*(item.reads for item in self._branches), self.traced.own_exits))

    def exits_passed(self) -> dict[str, int]:
        """Name of a node of the network -> how many exits a sample has passed that computes it."""
        heads = {name: index for index, item in enumerate(self._branches) for name in item.nodes}
        ends = {item.site.node: index + 1 for index, item in enumerate(self.exits)}
        found, passed = {}, 0
        for node in self.traced.graph.nodes:
            found[node.name] = heads.get(node.name, passed)
            passed = ends.get(node.name, passed)
        return found


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
