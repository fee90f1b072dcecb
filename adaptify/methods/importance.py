"""Pruning by importance: the channels that seem to matter least go, and the rest may be trained on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from adaptify.graph.channels import Channels
from adaptify.graph.importance import score_channels
from adaptify.methods.base import JudgingMethod, Section, register
from adaptify.training.options import LoopOptions
from adaptify.training.taylor import taylor_scores


class Gates(Section):
    """What channels are judged by.

    Attributes:
        criterion: `l1` or `l2` (norm of the weights), `bn_scale` (scale of the BatchNorm), `fpgm` (distance
            to the other filters), or `taylor` (effect on the loss, on training images).
    """

    criterion: Literal["l1", "l2", "bn_scale", "fpgm", "taylor"] = "l2"


@register
class Importance(JudgingMethod[Gates, LoopOptions]):
    """Channels judged one by one, all over the network."""

    name = "importance"
    summary = "channels that seem to matter least, judged by their weights or gradients (prune only)"
    Gates = Gates
    Train = LoopOptions

    @property
    def criterion(self) -> str:
        """The name of the criterion."""
        return self.gates.criterion

    @property
    def needs_images(self) -> bool:
        """Gradients need images, weights do not."""
        return self.gates.criterion == "taylor"

    def scores(
        self, channels: Channels, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
    ) -> dict[str, Tensor]:
        """Judge by gradients or by weights, as the criterion says."""
        if self.needs_images:
            return taylor_scores(channels, batches, device)
        return score_channels(channels, self.gates.criterion)
