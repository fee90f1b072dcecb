"""The loss of LC-Net: cross-entropy, and the L1 norm of saliences, which closes what is not worth it.

Notation: N samples in a batch, K saliences of all blocks, those of layers and those of channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptify.graph.gate_cost import GateCost
from adaptify.runtime.gated import Decisions
from adaptify.training.gate_loss import Target
from adaptify.training.objective import Distillation, Loss, Moment


@dataclass(frozen=True)
class SalienceObjective:
    """Cross-entropy + pressure * mean over N and K of (l1 |S|).

    l1 is `l1_layer` or `l1_channel`, and S a salience as it scales the network in training (leaky). With one
    mean over all saliences, a layer and a channel are pulled at alike where the weights are alike. The
    pressure is 1. With a target it is 0 while a batch takes no more MACs than that: saliences stop
    closing there, and open again where the cross-entropy has more to gain.

    Attributes:
        cost: MACs as a function of the gates.
        layers: (K,) bool: which saliences are of layers; the others are of channels.
        l1_layer: Weight of the saliences of layers.
        l1_channel: Weight of the saliences of channels.
        target: Fraction of the MACs of the network at which the pressure ends; None: it never does.
        label_smoothing: Share of the labels that is spread over all classes.
        distillation: Learning from a teacher.
    """

    cost: GateCost
    layers: Tensor
    l1_layer: float
    l1_channel: float
    target: Target | None = None
    label_smoothing: float = 0.0
    distillation: Distillation | None = None

    def __call__(
        self, model: Callable[[Tensor], Any], images: Tensor, labels: Tensor, moment: Moment
    ) -> Loss:
        """The loss of a network that returns `Decisions`."""
        decisions: Decisions = model(images)
        logits, saliences = decisions.logits, decisions.gates.float()
        with torch.no_grad():
            # What would be computed in evaluation, where nothing leaks.
            kept = self.cost.kept(decisions.odds > 0).mean()
        classification = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        layers = self.layers.to(saliences.device)
        of_layers, of_channels = (
            saliences[:, chosen].abs().sum() / saliences.numel() for chosen in (layers, ~layers)
        )
        terms = {"cross_entropy": classification, "layers": of_layers, "channels": of_channels}
        norm = self.l1_layer * of_layers + self.l1_channel * of_channels
        if self.target is not None:
            norm = norm * (kept > self.target.at(moment))
        total = classification + norm
        if self.distillation is not None:
            terms["distillation"] = self.distillation(images, logits)
            total = total + terms["distillation"]
        return Loss(total, logits, {name: term.detach() for name, term in terms.items()}, kept)
