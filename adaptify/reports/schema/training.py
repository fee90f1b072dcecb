"""Training of the whole network with its gates, or of what pruning left: epoch by epoch."""

# ruff: noqa: RUF012 (pydantic copies the defaults of fields)
from __future__ import annotations

from typing import Any

from pydantic import model_validator

from adaptify.reports.schema.part import Fraction, Part


class TrainingEpoch(Part):
    """One pass over the training samples.

    Attributes:
        epoch: Its number, as the trainer counts.
        lr: Learning rate at its end.
        loss: Mean loss of its batches.
        terms: Mean of each term of the loss, by name.
        train_accuracy: Accuracy on the training samples, as they were seen in training.
        holdout_accuracy: Accuracy on the held-out samples after it; `None` where there are none.
        kept: MACs as a fraction of the whole network's after it; `None` where they cannot change.
        images_per_second: Training samples per second.
        figures: What else is worth watching, by name: `valid.EXIT`, the share of the samples that the exit
            had left to learn; `leave.EXIT`, the share that its gate let go.
    """

    epoch: int
    lr: float
    loss: float
    terms: dict[str, float] = {}
    train_accuracy: Fraction
    holdout_accuracy: Fraction | None = None
    kept: float | None = None
    images_per_second: float | None = None
    figures: dict[str, float] = {}


class Training(Part):
    """How the network was trained.

    Attributes:
        options: Settings of the trainer, as they were resolved.
        epochs: What each epoch gave, in order.
        chosen: Epoch whose weights were kept; one before the first means those that training began with.
    """

    options: dict[str, Any] = {}
    epochs: list[TrainingEpoch]
    chosen: int

    @model_validator(mode="after")
    def _chosen_is_an_epoch(self) -> Training:
        numbers = [epoch.epoch for epoch in self.epochs]
        if numbers and self.chosen >= numbers[0] and self.chosen not in numbers:
            raise ValueError(f"epoch {self.chosen} was chosen, which is none of its epochs")
        return self
