"""What gates are trained towards: how much of the network a batch may use.

The losses of Herrmann et al. (ECCV 2020), sections 3 and S1. Notation: N samples in a batch, K gates, t the
target, Q what the batch used of what gates can close, in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adaptify.graph.gate_cost import GateCost
from adaptify.runtime.gated import Decisions
from adaptify.settings import Section
from adaptify.training.objective import Distillation, Loss, Moment

Measure = Literal["macs", "activation", "per_gate"]


class TargetSchedule(Section):
    """How the target changes while gates are trained.

    Attributes:
        kind: `constant`; `annealed`, down from 1 by `step` every `every` epochs (S1.1), so that gates close
            one after the other, each while the network can still say what it needs; `variable`, which starts
            every epoch at the target and follows what the batches use (S1.2).
        step: How far an annealed target falls at a time.
        every: Epochs between two of its steps; None: so many that half of the run is left at the target.
        decay: Of the moving average that a variable target is; None weighs all batches of the epoch alike.
    """

    kind: Literal["constant", "annealed", "variable"] = "annealed"
    step: float = Field(default=0.05, gt=0, le=1)
    every: float | None = Field(default=None, gt=0)
    decay: float | None = Field(default=None, gt=0, lt=1)


class Target:
    """The target t at any moment of a run.

    Args:
        final: t as it was asked for.
        schedule: How it changes.
    """

    def __init__(self, final: float, schedule: TargetSchedule) -> None:
        self.final = final
        self.schedule = schedule
        self._epoch = -1
        self._mean = final
        self._batches = 0

    def at(self, moment: Moment) -> float:
        """The target of a batch."""
        if self.schedule.kind == "annealed":
            falls = max(1, math.ceil((1 - self.final) / self.schedule.step))
            every = self.schedule.every or moment.epochs / 2 / falls
            fallen = self.schedule.step * (1 + int(moment.progress * moment.epochs / every))
            return max(self.final, 1 - fallen)
        if self.schedule.kind == "variable":
            if moment.epoch != self._epoch:
                self._epoch, self._mean, self._batches = moment.epoch, self.final, 1
            return self._mean
        return self.final

    def follow(self, used: Tensor) -> None:
        """Note what a batch used; only a variable target heeds it."""
        if self.schedule.kind == "variable":
            self._batches += 1
            decay = 1 - 1 / self._batches if self.schedule.decay is None else self.schedule.decay
            self._mean = decay * self._mean + (1 - decay) * float(used)

    def state(self) -> dict[str, float]:
        """The moving average that a variable target is."""
        return {"epoch": self._epoch, "mean": self._mean, "batches": self._batches}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a moving average."""
        self._epoch, self._mean, self._batches = state["epoch"], state["mean"], state["batches"]


def activation(gates: Tensor) -> Tensor:
    """Q of the batch activation loss (eq. 1): the mean of all gates (K,) or (N, K)."""
    return gates.mean()


def macs_used(gates: Tensor, cost: GateCost) -> Tensor:
    """Q of the FLOPs loss: the mean MACs for gates (K,) or (N, K), 0 with all closed and 1 with all open."""
    return ((cost(gates.double()).mean() - cost.least) / (cost.total - cost.least)).float()


def distance(used: Tensor, target: float, *, const_quad: bool) -> Tensor:
    """(t - Q)^2, averaged if Q is a vector; `const_quad` asks nothing of a batch below the target (eq. 3)."""
    over = used - target
    return (F.relu(over) if const_quad else over).square().mean()


@dataclass(frozen=True)
class GateObjective:
    """Cross-entropy, and the distance of what gates leave open from a target.

    Attributes:
        cost: MACs as a function of the gates.
        target: The target: a fraction of the MACs of the network for `macs`, else of the gates.
        measure: `macs` (FLOPs loss), `activation` (batch activation loss), or `per_gate`: every gate on
            its own, as in AIG (Veit and Belongie, 2018).
        weight: Of the distance, against the cross-entropy.
        const_quad: Whether using less than the target is free.
        label_smoothing: Share of the labels that is spread over all classes.
        distillation: Learning from a teacher.
    """

    cost: GateCost
    target: Target
    measure: Measure = "macs"
    weight: float = 2.0
    const_quad: bool = False
    label_smoothing: float = 0.0
    distillation: Distillation | None = None

    def __call__(
        self, model: Callable[[Tensor], Any], images: Tensor, labels: Tensor, moment: Moment
    ) -> Loss:
        """The loss of a network that returns `Decisions`."""
        decisions: Decisions = model(images)
        logits, gates = decisions.logits, decisions.gates
        used = self._used(gates)
        goal = self._goal(self.target.at(moment))
        self.target.follow(self._kept(used))
        classification = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        gate_term = distance(used, goal, const_quad=self.const_quad)
        terms = {"cross_entropy": classification.detach(), "gates": gate_term.detach()}
        total = classification + self.weight * gate_term
        if self.distillation is not None:
            term = self.distillation(images, logits)
            terms["distillation"] = term.detach()
            total = total + term
        with torch.no_grad():
            kept = self.cost.kept(gates).mean()
        return Loss(total, logits, terms, kept)

    def state(self) -> Mapping[str, Any]:
        """What the target follows."""
        return self.target.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Let the target go on from there."""
        self.target.restore(state)

    def _used(self, gates: Tensor) -> Tensor:
        if self.measure == "macs":
            return macs_used(gates, self.cost)
        if self.measure == "activation":
            return activation(gates)
        return gates if gates.dim() == 1 else gates.mean(0)

    def _goal(self, target: float) -> float:
        """The target as a part of what gates can close."""
        if self.measure != "macs":
            return target
        return (target * self.cost.total - self.cost.least) / (self.cost.total - self.cost.least)

    def _kept(self, used: Tensor) -> Tensor:
        """The inverse of `_goal`."""
        used = used.detach().mean()
        if self.measure != "macs":
            return used
        return (used * (self.cost.total - self.cost.least) + self.cost.least) / self.cost.total
