"""The knob of a network at run time: a budget of MACs chooses a policy on the frontier that it carries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from adaptify.errors import UsageError
from adaptify.plan import Plan
from adaptify.runtime.budget import MOST, Budget
from adaptify.runtime.frontier import Frontier, OperatingPoint
from adaptify.runtime.gate_policy import Policy, policy_from_json
from adaptify.runtime.policy import ThresholdPolicy


class Budgeted:
    """What networks share that decide by a policy, and know what other thresholds would give.

    A batch runs under the policy that the network had when it began: a policy is a value that never changes,
    and the network reads it once a batch. Another thread may therefore set `policy` or `budget` at any time.

    Attributes:
        plan: How the network was made; its frontier says what accuracy is reached at what cost.
        policy: How the network decides from the next batch on.
    """

    plan: Plan | None
    policy: Any

    @property
    def frontier(self) -> Frontier | None:
        """What accuracy is reached at what cost, on held-out samples; None if that is not known."""
        if self.plan is None or self.plan.frontier is None:
            return None
        found = Frontier.from_json(self.plan.frontier)
        if found.policy is None:
            found = replace(found, policy=self.plan.policy)
        return found if found.policy is not None and found.points else None

    @property
    def budget(self) -> float | None:
        """What is spent on a sample, on average, as a fraction of the network's MACs.

        It is what held-out samples took under the policy of now; None where that is on no frontier. Set to a
        fraction, a number of MACs or a `Budget`, it chooses the policy of `policy_within` for the next batch.
        """
        frontier = self.frontier
        if frontier is None:
            return None
        for point in frontier.points:
            if frontier_policy(frontier, point) == self.policy:
                return point.macs / frontier.base_macs
        return None

    @budget.setter
    def budget(self, value: float | Budget) -> None:
        self.policy = self.policy_within(value)

    def policy_within(self, budget: float | Budget) -> ThresholdPolicy | Policy:
        """Return the policy of the most accurate point of the frontier within a budget.

        Args:
            budget: Mean MACs of a sample, as a fraction (up to 2) of the network's without gates, or as such.

        Raises:
            UsageError: It is no budget, or the network carries no frontier.
            TargetError: Nothing on the frontier is that cheap; the message names what is cheapest.
        """
        wanted = budget if isinstance(budget, Budget) else Budget.of(budget)
        frontier = self.frontier
        if frontier is None:
            raise UsageError(
                "the network does not know what other policies would cost: it carries no frontier",
                "`adaptify retrofit` gives one to networks with exits, or gates that look at the sample.",
            )
        fraction = min(wanted.fraction(frontier.base_macs), MOST)
        return frontier_policy(frontier, frontier.choose(max_macs=fraction))


def frontier_policy(frontier: Frontier, point: OperatingPoint) -> ThresholdPolicy | Policy:
    """The policy that a point of a frontier stands for: the frontier's with its thresholds."""
    base = frontier.policy
    assert base is not None
    if base.get("kind") == "threshold":
        return replace(ThresholdPolicy.from_json(base), thresholds=point.thresholds)
    (tau,) = point.thresholds
    return policy_from_json(base).with_tau(tau)
