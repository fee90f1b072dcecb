"""What the gates of a network do to the samples of a split."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptify.data import Split
from adaptify.progress import SILENT, Progress
from adaptify.runtime.gated import GatedModel


@dataclass(frozen=True)
class GateRecords:
    """What became of each of N samples, and of each of K gates.

    Attributes:
        predictions: (N,) int64.
        labels: (N,) int64.
        macs: (N,) float64, MACs of each sample, those of deciding included.
        open: (K,) float64, the mean of each gate's decisions.
        probabilities: (K,) float64, the mean of its probability of being open.
        histogram: How many probabilities (of gates that look at nothing; else of gates and samples) lie
            in each of `BINS` equal parts of [0, 1].
        kept: Mean MACs as a fraction of those of the whole network.
        seconds: Wall-clock time of the network alone.
        logits: (N, M) float32.
        site_probabilities: The mean of `probabilities` at each site.
        site_open: The mean of `open` at each site.
    """

    predictions: Tensor
    labels: Tensor
    macs: Tensor
    open: Tensor
    probabilities: Tensor
    histogram: Tensor
    kept: float
    seconds: float
    logits: Tensor
    site_probabilities: tuple[float, ...]
    site_open: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in [0, 1]."""
        return float((self.predictions == self.labels).double().mean())

    @property
    def polarised(self) -> float:
        """Share of the probabilities in the outermost bins: gates that have decided for good."""
        return float((self.histogram[0] + self.histogram[-1]) / self.histogram.sum())


BINS = 20


@torch.inference_mode()
def observe_gates(
    model: GatedModel,
    split: Split,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: Progress = SILENT,
) -> GateRecords:
    """Run `model` (on `device`) over `split` under its policy, in evaluation mode."""
    model.eval()
    cost = model.gate_cost
    logits, macs = [], []
    opened = torch.zeros(cost.gates, dtype=torch.float64)
    likely = torch.zeros_like(opened)
    histogram = torch.zeros(BINS, dtype=torch.float64)
    seconds = 0.0
    with progress.stage("evaluate", total=len(split)) as stage:
        for images, labels in split.batches(batch_size, device=device):
            started = time.perf_counter()
            decisions = model.run(images)
            logits.append(decisions.logits.float().cpu())
            seconds += time.perf_counter() - started
            gates = decisions.gates.double().cpu()
            probabilities = decisions.odds.double().sigmoid().cpu()
            macs.append((cost(gates) + model.decider_macs).expand(len(labels)))
            by_sample = gates.expand(len(labels), -1)
            opened += by_sample.sum(0)
            likely += probabilities.expand(len(labels), -1).sum(0)
            if model.per_sample or not histogram.any():
                histogram += torch.histc(probabilities, BINS, 0, 1)
            stage.advance(len(labels))
    opened, likely = opened / len(split), likely / len(split)
    all_logits = torch.cat(logits)
    all_macs = torch.cat(macs)
    sizes = [site.gates for site in model.sites]
    return GateRecords(
        predictions=all_logits.argmax(1),
        labels=split.labels,
        macs=all_macs,
        open=opened,
        probabilities=likely,
        histogram=histogram,
        kept=float(all_macs.mean()) / cost.total,
        seconds=seconds,
        logits=all_logits,
        site_probabilities=tuple(float(part.mean()) for part in likely.split(sizes)),
        site_open=tuple(float(part.mean()) for part in opened.split(sizes)),
    )
