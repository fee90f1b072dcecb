"""What training minimises: the protocol of objectives, classification, and distillation as a term."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptify.training.options import Distill
from adaptify.training.spread import spread


@dataclass(frozen=True)
class Moment:
    """When in a run something happens.

    Attributes:
        epoch: The epoch, from 0.
        step: The optimizer step, from 0, counted over the whole run.
        steps: Optimizer steps of the whole run.
        epochs: Epochs of the whole run.
    """

    epoch: int
    step: int
    steps: int
    epochs: int

    @property
    def progress(self) -> float:
        """How much of the run is done, in [0, 1)."""
        return self.step / self.steps


@dataclass(frozen=True)
class Loss:
    """What an objective says about one batch of B images.

    Attributes:
        total: Scalar to minimise, a mean over the batch.
        logits: (B, M), from which accuracy is told.
        terms: Detached scalars that `total` is made of, for the metrics.
        kept: Detached scalar: the fraction of MACs that this batch took, where that is less than all.
        figures: Detached scalars that are worth watching and no part of `total`.
    """

    total: Tensor
    logits: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Tensor | None = None
    figures: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """What training minimises."""

    def __call__(
        self, model: Callable[[Tensor], Any], images: Tensor, labels: Tensor, moment: Moment
    ) -> Loss:
        """Run `model` in training mode on images (B, C, H, W), and hold it against the labels (B,) int64.

        With several processes, images are those of this process, and labels those of all: `model` returns
        what the network says about all images. Other networks do so by `spread`.
        """


@runtime_checkable
class Stateful(Protocol):
    """An objective that remembers something of the batches it has seen."""

    def state(self) -> Mapping[str, Any]:
        """What it remembers, as JSON values."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Remember what `state` says, and nothing else."""


def network_logits(output: Any) -> Tensor:
    """The logits (B, M) in what a network returned: `logits` or `(logits, ...)`."""
    logits: Tensor = output[0] if isinstance(output, tuple) else output
    return logits


@dataclass(frozen=True)
class Distillation:
    """Cross-entropy towards a frozen teacher, less the teacher's own entropy (Hinton et al., 2015).

    weight * T^2 * KL(softmax(teacher / T) || softmax(student / T)), a mean over the batch. T^2 makes up
    for gradients that shrink as 1 / T^2.

    Attributes:
        teacher: Maps images (B, C, H, W) to logits (B, M); never trained.
        weight: Factor of the term.
        temperature: T.
    """

    teacher: Callable[[Tensor], Any]
    weight: float = 1.0
    temperature: float = 4.0

    @classmethod
    def of(cls, options: Distill, network: nn.Module, device: torch.device | str = "cpu") -> Distillation:
        """Distil from a copy of `network` as it is now, in evaluation mode and on `device`."""
        teacher = copy.deepcopy(network).to(device).eval().requires_grad_(False)
        return cls(teacher, options.weight, options.temperature)

    def __call__(self, images: Tensor, logits: Tensor) -> Tensor:
        """The term for a student that gives `logits` (B, M) for `images` (B, C, H, W)."""
        with torch.no_grad():
            target = network_logits(spread(self.teacher)(images))
        divergence = F.kl_div(
            F.log_softmax(logits.float() / self.temperature, dim=1),
            F.log_softmax(target.float() / self.temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return self.weight * self.temperature**2 * divergence


@dataclass(frozen=True)
class Classification:
    """Cross-entropy with the labels, and distillation if there is a teacher.

    Attributes:
        label_smoothing: Share of the target that is spread over all classes.
        distillation: Learning from a teacher.
    """

    label_smoothing: float = 0.0
    distillation: Distillation | None = None

    def __call__(
        self, model: Callable[[Tensor], Any], images: Tensor, labels: Tensor, moment: Moment
    ) -> Loss:
        """The loss of a network that returns `logits` or `(logits, ...)`."""
        logits = network_logits(model(images))
        total = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        terms = {"cross_entropy": total.detach()}
        if self.distillation is not None:
            term = self.distillation(images, logits)
            terms["distillation"] = term.detach()
            total = total + term
        return Loss(total, logits, terms)
