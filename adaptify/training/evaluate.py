"""Running a network over a split; an adaptive one, really skipping."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adaptify.data import Split
from adaptify.parallel import group
from adaptify.progress import SILENT, Progress
from adaptify.runtime.adaptive import AdaptiveModel, Outcome
from adaptify.runtime.policy import ThresholdPolicy
from adaptify.training.objective import network_logits
from adaptify.training.records import ExitRecords


@dataclass(frozen=True)
class Evaluation:
    """What became of each of N samples.

    Attributes:
        predictions: (N,) int64, class predicted where the sample left.
        exit_index: (N,) int64, where it left (number of exits: the output).
        scores: (N,) float32, how sure that exit was.
        labels: (N,) int64.
        seconds: Wall-clock time of the network alone (of several processes: a mean), or None when it was not
            run.
    """

    predictions: Tensor
    exit_index: Tensor
    scores: Tensor
    labels: Tensor
    seconds: float | None = None

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in [0, 1]."""
        return float((self.predictions == self.labels).double().mean())

    def macs(self, exit_macs: tuple[int, ...]) -> Tensor:
        """(N,) int64: MACs of each sample, given those of leaving at each exit."""
        return torch.tensor(exit_macs)[self.exit_index]


def evaluate(
    model: AdaptiveModel,
    split: Split,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: Progress = SILENT,
) -> Evaluation:
    """Run `model` (on `device`, in evaluation mode) over `split` under its policy.

    Several processes take turns, batch by batch, and all know the whole.
    """

    def found(images: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        started = time.perf_counter()
        outcome = model.run(images)
        predictions = outcome.logits.argmax(1).cpu()
        seconds = time.perf_counter() - started
        return predictions, outcome.exit_index.cpu(), _scores(model.policy, outcome).cpu(), seconds

    parts = []
    with torch.inference_mode(), progress.stage("evaluate", total=len(split)) as stage:
        own = split.batches(batch_size, device=device, take=group.own_turn)
        for part in group.in_turns(found(images) for images, _ in own):
            parts.append(part)
            stage.advance(len(part[0]))
    predictions, indices, scores, seconds = zip(*parts, strict=True)
    return Evaluation(
        torch.cat(predictions),
        torch.cat(indices),
        torch.cat(scores),
        split.labels,
        sum(seconds) / group.size(),
    )


def _scores(policy: ThresholdPolicy, outcome: Outcome) -> Tensor:
    """(N,) float32: how sure each sample's exit was; NaN where its logits do not tell."""
    logits = outcome.logits.float()
    scores = torch.empty(len(logits), device=logits.device)
    for index in outcome.exit_index.unique().tolist():
        rows = outcome.exit_index == index
        scores[rows] = policy.rate(index, logits[rows])
    return scores


def replay(records: ExitRecords, model: AdaptiveModel) -> Evaluation:
    """What `evaluate` would find, told from the records of every exit, without running the network."""
    index = records.exit_index(model.policy)
    samples = torch.arange(len(index))
    never = torch.full((1, len(index)), float("nan"))
    return Evaluation(
        records.predictions[index, samples],
        index,
        torch.cat([records.scores, never])[index, samples],
        records.labels,
    )


@torch.inference_mode()
def top1(model: nn.Module, split: Split, device: torch.device | str, batch_size: int = 256) -> float:
    """Top-1 accuracy of `model` on a split, in [0, 1]; the model is put into evaluation mode."""
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for images, labels in split.batches(batch_size, device=device, take=group.own_turn):
        correct += (network_logits(model(images)).argmax(1) == labels).sum()
    return int(group.total(correct)) / len(split)
