"""What every exit says about every sample: all that calibration and reports need to know of a network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from adaptify.bounds import brief
from adaptify.errors import UsageError
from adaptify.files import atomic_write, write_tensors
from adaptify.runtime.policy import ThresholdPolicy, never_leave


@dataclass(frozen=True)
class ExitRecords:
    """Scores and predictions of S exits and the output, for N samples, in the order of the split.

    Attributes:
        scores: (S, N) float32, how sure each exit is.
        predictions: (S + 1, N) int64, the class each exit and (last) the output predicts.
        labels: (N,) int64.
    """

    scores: Tensor
    predictions: Tensor
    labels: Tensor

    @classmethod
    def of(
        cls,
        exits: Sequence[Tensor],
        logits: Tensor,
        labels: Tensor,
        score: str,
        temperatures: Sequence[float] | None = None,
    ) -> ExitRecords:
        """Make records of S exits from logits.

        Args:
            exits: S times (N, M), the logits of each exit.
            logits: (N, M), of the output.
            labels: (N,) int64.
            score: Key of `runtime.policy.SCORES`.
            temperatures: One per exit, as in `runtime.policy.ThresholdPolicy`, which must be given the same.

        Raises:
            UsageError: There are more or fewer temperatures than exits.
        """
        policy = replace(
            never_leave(len(exits), score), temperatures=None if temperatures is None else tuple(temperatures)
        )
        scores = [policy.rate(index, item.float()) for index, item in enumerate(exits)]
        return cls(
            torch.stack(scores).cpu() if scores else torch.empty(0, len(labels)),
            torch.stack([item.argmax(1) for item in [*exits, logits]]).cpu(),
            labels.cpu(),
        )

    def take(self, rows: Tensor) -> ExitRecords:
        """The records of the samples at positions `rows`, (K,) int64."""
        return ExitRecords(self.scores[:, rows], self.predictions[:, rows], self.labels[rows])

    @property
    def correct(self) -> Tensor:
        """(S + 1, N) bool: whether each prediction is right."""
        return self.predictions == self.labels

    @property
    def base_accuracy(self) -> float:
        """Accuracy of the network without exits, in [0, 1]."""
        return float(self.correct[-1].double().mean())

    def exit_index(self, policy: ThresholdPolicy) -> Tensor:
        """(N,) int64: the exit at which each sample leaves under `policy` (S: the output)."""
        limits = torch.tensor(policy.thresholds, dtype=self.scores.dtype).unsqueeze(1)
        leaves = torch.cat([self.scores >= limits, torch.ones(1, len(self.labels), dtype=torch.bool)])
        return leaves.int().argmax(0)


def save_records(records: dict[str, ExitRecords], path: str | os.PathLike[str]) -> None:
    """Write the records of several splits into one safetensors file, atomically."""
    tensors = {
        f"{split}.{field}": getattr(item, field).contiguous()
        for split, item in records.items()
        for field in ("scores", "predictions", "labels")
    }
    with atomic_write(path) as temporary:
        write_tensors(temporary, tensors, {"format": "adaptify.records", "version": "1"})


def load_records(path: str | os.PathLike[str]) -> dict[str, ExitRecords]:
    """Inverse of `save_records`.

    Raises:
        UsageError: The file is missing or damaged.
    """
    source = Path(path)
    try:
        tensors = load_file(source)
        splits = {name.split(".")[0] for name in tensors} | {"holdout", "test"}
        return {split: _checked(split, tensors) for split in splits}
    except MemoryError:
        raise
    except Exception as error:  # types and shapes that torch does not know end in errors of many kinds
        raise UsageError(
            f"cannot read the exit records {source}: {brief(error)}",
            "Make the run again: `adaptify retrofit --recipe RUN/recipe.yaml`.",
        ) from error


def _checked(split: str, tensors: Mapping[str, Tensor]) -> ExitRecords:
    scores, predictions, labels = (tensors[f"{split}.{name}"] for name in ("scores", "predictions", "labels"))
    shapes = (len(scores) + 1, *labels.shape), (len(scores), *labels.shape)
    if labels.dim() != 1 or (predictions.shape, scores.shape) != shapes:
        raise ValueError(f"scores, predictions and labels of '{split}' do not fit each other")
    if (scores.dtype, predictions.dtype, labels.dtype) != (torch.float32, torch.int64, torch.int64):
        raise ValueError(f"scores, predictions or labels of '{split}' are of another type")
    return ExitRecords(scores, predictions, labels)
