"""The loss of SGAD: how many blocks each sample should skip, and what it costs to disagree (section 3.2).

A guide, a small classifier trained beside the network, says by its confidence how easy a sample is. The
surer it is, the more blocks the sample is wanted to skip.

Notation: N samples in a batch, M classes, K gated blocks, L = K + 1 blocks with the last, which always runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptify.gates.estimators import NoisyRounding
from adaptify.graph.gate_cost import GateCost
from adaptify.runtime.gated import Decisions
from adaptify.training.objective import Distillation, Loss, Moment
from adaptify.training.spread import spread


def confidence(logits: Tensor) -> Tensor:
    """The variance of the softmax of logits (N, M) over classes (eq. 9): (N,), from 0 to (M - 1) / M^2."""
    return logits.float().softmax(1).var(1, unbiased=False)


def wanted_drop(logits: Tensor, max_drop: float) -> Tensor:
    """The fraction of blocks that each sample should skip (eq. 11, corrected): (N,), from 0 to `max_drop`.

    1 - L^(-scale var) with scale = -M ln(1 - s_max) / ln L, in which L cancels: 1 - (1 - s_max)^(M var). The
    paper prints ln(s_max), with which the most would be 1 - s_max.

    Args:
        logits: (N, M), of the guide.
        max_drop: s_max, below 1.
    """
    classes = logits.shape[1]
    return 1 - (1 - max_drop) ** (classes * confidence(logits))


def dropped(gates: Tensor) -> Tensor:
    """The fraction of all blocks that gates (N, K) close: (N,). The last counts, and is never closed."""
    return (1 - gates).sum(1) / (gates.shape[1] + 1)


@dataclass(frozen=True)
class GuidedObjective:
    """R = alpha R' + alpha_m R^m + alpha_g R^g (eq. 12): network, masks, guide.

    R' and R^g are cross-entropies, R^m the mean distance of wanted and true drop ratio (eq. 10). No gradient
    of R^m reaches the guide: masks are held against what it says, and it would otherwise learn to be as
    unsure as suits them.

    Attributes:
        cost: MACs as a function of the gates.
        guide: Maps images (N, C, H, W) to logits (N, M); trained by its own term alone.
        sampler: How gates are drawn; its noise is set here.
        max_drop: s_max.
        noise: Standard deviation of the noise at the end of the run, which it grows to from 0, in log-odds.
        network_weight: alpha.
        mask_weight: alpha_m.
        guide_weight: alpha_g.
        label_smoothing: Share of the labels that is spread over all classes, for network and guide.
        distillation: Learning from a teacher.
    """

    cost: GateCost
    guide: nn.Module
    sampler: NoisyRounding
    max_drop: float = 0.2
    noise: float = 1.0
    network_weight: float = 1.0
    mask_weight: float = 1.0
    guide_weight: float = 0.3
    label_smoothing: float = 0.0
    distillation: Distillation | None = None

    def __call__(
        self, model: Callable[[Tensor], Any], images: Tensor, labels: Tensor, moment: Moment
    ) -> Loss:
        """The loss of a network that returns `Decisions`."""
        self.sampler.set_noise(self.noise * moment.progress)
        decisions: Decisions = model(images)
        logits, gates = decisions.logits, decisions.gates
        guess = spread(self.guide)(images)
        classification = self._cross_entropy(logits, labels)
        guidance = self._cross_entropy(guess, labels)
        wanted = wanted_drop(guess.detach(), self.max_drop)
        masks = (wanted - dropped(gates)).abs().mean()
        terms = {"cross_entropy": classification, "masks": masks, "guide": guidance}
        total = self.network_weight * classification + self.mask_weight * masks + self.guide_weight * guidance
        if self.distillation is not None:
            terms["distillation"] = self.distillation(images, logits)
            total = total + terms["distillation"]
        with torch.no_grad():
            kept = self.cost.kept(gates).mean()
        return Loss(total, logits, {name: term.detach() for name, term in terms.items()}, kept)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
