"""Which channels to keep so that a network costs a given part of its MACs."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptify.errors import TargetError, UsageError
from adaptify.graph.channel_cost import ChannelCost

TOLERANCE = 0.01
"""How far the MACs may be from the target, as a part of the target."""

_SKIPPED = 64  # chunks that are tried to be left out for the sake of others


@dataclass(frozen=True)
class Selection:
    """Channels to keep.

    Attributes:
        keep: Group name -> (size,) bool.
        macs: What the network costs with them, exactly.
        fraction: `macs` as a part of the MACs of the whole network.
        round_to: The multiple of channels that was kept to where groups are large enough; smaller than
            what was asked for where the target could not be met otherwise.
    """

    keep: dict[str, Tensor]
    macs: int
    fraction: float
    round_to: int


def select_channels(
    cost: ChannelCost,
    scores: Mapping[str, Tensor],
    target: float,
    *,
    round_to: int = 16,
    least: Mapping[str, int] | None = None,
) -> Selection:
    """Keep the channels with the highest scores, over all groups, within `target` of the MACs.

    Channels are taken in chunks of `round_to`, the best of a group first. A group with fewer than four such
    chunks is cut into smaller ones, by halves: 16 channels into four times four.

    Args:
        cost: The cost of the network's channels.
        scores: Group name -> (size,), comparable between groups.
        target: Fraction of the MACs to keep, in (0, 1].
        round_to: Multiple of channels to keep, 1 for any number.
        least: Group name -> how many of its channels it keeps in any case; by default a chunk.

    Raises:
        UsageError: The target or the multiple makes no sense.
        TargetError: No choice of channels is within 1% of the target; the message names what is.
    """
    if not 0 < target <= 1:
        raise UsageError(f"a target of {target} is not in (0, 1]", "Give the fraction of MACs to keep: 0.5.")
    if round_to < 1:
        raise UsageError(f"cannot round channels to multiples of {round_to}", "Use 1 for any number.")
    goal = int(cost.total * target)
    while True:
        chunks = _Chunks(cost, scores, round_to, least or {})
        # Where single channels are too coarse as well, what fills up counts for more than the scores.
        for by_cost in (False, True) if round_to == 1 else (False,):
            counts = chunks.choose(goal, by_cost=by_cost)
            macs = chunks.macs(counts)
            if macs < (1 - TOLERANCE) * goal:  # what does not fit below may be near enough above
                above = chunks.choose(int((1 + TOLERANCE) * goal), by_cost=by_cost)
                if chunks.macs(above) >= (1 - TOLERANCE) * goal:
                    counts, macs = above, chunks.macs(above)
            if abs(macs - goal) <= TOLERANCE * goal:
                return Selection(chunks.masks(counts), macs, macs / cost.total, round_to)
        if round_to == 1:
            raise _missed(cost, target, macs)
        round_to //= 2


def _missed(cost: ChannelCost, target: float, macs: int) -> TargetError:
    if macs > cost.total * target:
        return TargetError(
            f"{target:.3g} of the MACs cannot be reached: the least is {macs / cost.total:.3g} ({macs:,})",
            "Ask for more, or remove whole blocks first.",
        )
    return TargetError(
        f"no choice of channels is within 1% of {target:.3g} of the MACs; the nearest below is "
        f"{macs / cost.total:.3g} ({macs:,} MACs)",
        "Ask for that.",
    )


class _Chunks:
    """The channels of all groups in the order in which they would be kept, in chunks.

    Attributes:
        least: (G,) what every group keeps in any case, in whole chunks.
        group: (chunks,) index of the group of each further chunk, most important chunk first.
        size: (chunks,) how many channels it adds.
    """

    def __init__(
        self, cost: ChannelCost, scores: Mapping[str, Tensor], round_to: int, floor: Mapping[str, int]
    ) -> None:
        self.cost = cost
        groups = cost.channels.removable
        self.order = [torch.argsort(scores[g.name], descending=True, stable=True) for g in groups]
        least, group, size, score = [], [], [], []
        for index, (item, order) in enumerate(zip(groups, self.order, strict=True)):
            chunk = item.chunk(round_to)
            ranked = scores[item.name][order].split(chunk)
            first = -(-floor.get(item.name, chunk) // chunk)
            least.append(sum(len(part) for part in ranked[:first]))
            group += [index] * (len(ranked) - first)
            size += [len(part) for part in ranked[first:]]
            score += [float(part.mean()) for part in ranked[first:]]
        self.least = torch.tensor(least, dtype=torch.int64)
        # Equal scores keep the order inside a group.
        by_score = torch.argsort(torch.tensor(score), descending=True, stable=True)
        self.group = torch.tensor(group, dtype=torch.int64)[by_score]
        self.size = torch.tensor(size, dtype=torch.int64)[by_score]

    def choose(self, goal: int, *, by_cost: bool = False) -> Tensor:
        """Return counts (G,) that cost as much as possible, but not more than `goal`; at least `least`.

        Args:
            goal: MACs.
            by_cost: Whether chunks that made room come back the dearest first, so that small ones fill what
                is left; otherwise by their scores.
        """
        low, high = 0, len(self.group)
        while low < high:
            middle = (low + high + 1) // 2
            if self.macs(self._first(middle)) <= goal:
                low = middle
            else:
                high = middle - 1
        everything = torch.arange(len(self.group))
        counts = self._fill(self._first(low), everything[low:], goal)
        # Where all that is left is too large, the last ones that were taken make room, and come after it.
        for skipped in range(low - 1, max(low - 1 - _SKIPPED, -1), -1):
            if self.macs(counts) >= (1 - TOLERANCE) * goal:
                break
            order = everything[skipped:low]
            if by_cost:
                order = order[self._costs[self.group[order]].argsort(descending=True, stable=True)]
            other = self._fill(self._first(skipped), torch.cat([everything[low:], order]), goal)
            counts = max(counts, other, key=self.macs)
        return counts

    def macs(self, counts: Tensor) -> int:
        """Return the exact MACs when the groups keep `counts` (G,) channels."""
        if bool(self.least.all()) and not self.cost.channels.rows:
            return int(self.cost.of_counts(counts))
        # What an empty group takes with it, and what leaves a stream with a row, has to be looked for.
        return self.cost.macs(self.masks(counts))

    @functools.cached_property
    def _costs(self) -> Tensor:
        """(G,) MACs of a channel of each group, the last one of all."""
        whole = self._first(len(self.group))
        total = self.macs(whole)
        one_less = whole - torch.eye(len(whole), dtype=torch.int64)
        return torch.tensor([total - self.macs(counts) for counts in one_less])

    def _first(self, count: int) -> Tensor:
        return self.least.index_add(0, self.group[:count], self.size[:count])

    def _fill(self, counts: Tensor, order: Tensor, goal: int) -> Tensor:
        """Add the chunks `order` that still fit, each after those of its group that come before it there."""
        group, size = self.group[order], self.size[order]
        while len(group) and self.macs(counts) < (1 - TOLERANCE) * goal:
            # The first chunk that is left of each group.
            first = torch.full((len(counts),), len(group)).scatter_reduce_(
                0, group, torch.arange(len(group)), "amin"
            )
            candidates = first[first < len(group)].sort().values
            for candidate in candidates.tolist():
                trial = counts.clone()
                trial[group[candidate]] += size[candidate]
                if self.macs(trial) <= goal:
                    break
            else:
                break
            counts = trial
            rest = torch.arange(len(group)) != candidate
            group, size = group[rest], size[rest]
        return counts

    def masks(self, counts: Tensor) -> dict[str, Tensor]:
        """Return the masks that keep the best `counts` (G,) channels of the groups."""
        keep = {}
        for group, order, count in zip(
            self.cost.channels.removable, self.order, counts.tolist(), strict=True
        ):
            keep[group.name] = torch.zeros(group.size, dtype=torch.bool)
            keep[group.name][order[:count]] = True
        return keep
