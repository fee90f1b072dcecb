"""What networks with exits are trained towards: every exit at once.

Notation: B samples in a batch, N predictions (the exits, and the output last), M classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptify.errors import UsageError
from adaptify.gates.gumbel import sample_gates
from adaptify.runtime.adaptive import Everything
from adaptify.training.gate_loss import distance
from adaptify.training.objective import Distillation, Loss, Moment

VALID = 0.9
"""Share of a batch that the first exit has to learn from, by definition (BoostNet, Fig. 3)."""


def losses_of(found: Everything, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The cross-entropy of every prediction for every sample: (N, B), for labels (B,) int64."""
    return torch.stack(
        [
            F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing, reduction="none")
            for logits in (*found.exits.values(), found.logits)
        ]
    )


def valid_shares(losses: Tensor) -> Tensor:
    """The share of the batch that is left to learn for every prediction: losses (N, B) to (N,).

    A sample is left to learn where its loss is above the 10th percentile of the losses of the first exit.
    """
    limit = losses[0].float().quantile(1 - VALID)
    return (losses > limit).float().mean(1)


@dataclass(frozen=True)
class ExitsObjective:
    """sum_n w_n CE(F_n, y) (BoostNet, eq. 1 and eq. 6: what F_n is, the network says).

    Attributes:
        weights: w_n: one for each exit, and one for the output.
        label_smoothing: Share of the labels that is spread over all classes.
        distillation: Learning from a teacher, for the output.
    """

    weights: Sequence[float]
    label_smoothing: float = 0.0
    distillation: Distillation | None = None

    def __call__(
        self, model: Callable[[Tensor], Any], images: Tensor, labels: Tensor, moment: Moment
    ) -> Loss:
        """The loss of a network that returns `Everything`."""
        found: Everything = model(images)
        losses = losses_of(found, labels, self.label_smoothing)
        means = losses.mean(1)
        total = (means * means.new_tensor(self.weights)).sum()
        names = (*found.exits, "output")
        terms = dict(zip(names, means.detach(), strict=True))
        if self.distillation is not None:
            term = self.distillation(images, found.logits)
            terms["distillation"] = term.detach()
            total = total + term
        shares = valid_shares(losses.detach())
        return Loss(total, found.logits, terms, figures=_named("valid", names, shares))


@dataclass(frozen=True)
class LearnedExitsObjective:
    """Classifiers and gates together: who leaves where, and what that costs (Herrmann et al., S1.5).

    Gates are drawn; a sample leaves at the first that is open, with z_i its gates and
    w_i = z_i prod_{j<i} (1 - z_j) one for that exit and zero for all others. The loss is the cross-entropy
    where samples leave, sum_i w_i CE_i; the sum over all exits, so that each classifier learns from
    all samples; and, above the target, the squared distance of the mean MACs from it (const-quad, eq. 3).

    Attributes:
        macs: MACs of a sample that leaves at each exit, and of one that runs to the end.
        base: MACs of the network without exits.
        target: Fraction of them at which using less is worth nothing.
        weight: Of the distance.
        auxiliary: Of the sum over all exits.
        label_smoothing: Share of the labels that is spread over all classes.
        distillation: Learning from a teacher, for the output.
    """

    macs: Sequence[int]
    base: int
    target: float
    weight: float = 2.0
    auxiliary: float = 1.0
    label_smoothing: float = 0.0
    distillation: Distillation | None = None

    def __call__(
        self, model: Callable[[Tensor], Any], images: Tensor, labels: Tensor, moment: Moment
    ) -> Loss:
        """The loss of a network that returns `Everything`."""
        found: Everything = model(images)
        losses = losses_of(found, labels, self.label_smoothing)
        leaves = leaving(torch.stack([sample_gates(found.gates[name]) for name in found.exits]))
        chosen = (leaves * losses).sum(0).mean()
        everywhere = losses.mean(1).sum()
        kept = (leaves.mean(1) * leaves.new_tensor([macs / self.base for macs in self.macs])).sum()
        compute = distance(kept, self.target, const_quad=True)
        terms = {"where samples leave": chosen, "everywhere": everywhere, "compute": compute}
        total = chosen + self.auxiliary * everywhere + self.weight * compute
        if self.distillation is not None:
            terms["distillation"] = self.distillation(images, found.logits)
            total = total + terms["distillation"]
        return Loss(
            total,
            found.logits,
            {name: term.detach() for name, term in terms.items()},
            kept.detach(),
            _named("leave", (*found.exits, "output"), leaves.detach().mean(1)),
        )


def leaving(gates: Tensor) -> Tensor:
    """Where samples leave: gates (N - 1, B) of the exits to w (N, B), which sum to 1 for each sample."""
    staying = torch.cumprod(1 - gates, 0)
    before = torch.cat([torch.ones_like(gates[:1]), staying])
    return torch.cat([gates * before[:-1], before[-1:]])


def weights_of(weights: Sequence[float] | None, predictions: int) -> tuple[float, ...]:
    """The weights of all predictions: as given, or 1.

    Raises:
        UsageError: There are more or fewer than predictions.
    """
    if weights is None:
        return (1.0,) * predictions
    if len(weights) != predictions:
        raise UsageError(
            f"train.weights has {len(weights)} numbers for {predictions - 1} exits and the output",
            f"Give {predictions}, from shallow to deep.",
        )
    return tuple(weights)


def _named(prefix: str, names: Sequence[str], values: Tensor) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in zip(names, values, strict=True)}
