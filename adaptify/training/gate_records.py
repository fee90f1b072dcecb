"""What the gates of a network do to the samples of a split."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptify.data import Split
from adaptify.data.split import everything
from adaptify.parallel import group
from adaptify.progress import SILENT, Progress
from adaptify.runtime.gated import GatedModel, ensemble
from adaptify.runtime.skipping.model import SkippingModel


@dataclass(frozen=True)
class GateRecords:
    """What became of each of N samples, and of each of K gates.

    Attributes:
        predictions: (N,) int64.
        labels: (N,) int64.
        macs: (N,) float64, MACs of each sample, those of deciding included; of an ensemble, of all its runs.
        open: (K,) float64, the share of the samples (of an ensemble: of its runs) that open each gate. A gate
            is open where it is above 0.
        probabilities: (K,) float64, the mean of how open it is: its probability, or its salience.
        histogram: How many of these (of gates that look at nothing; else of gates and samples) lie in each of
            `BINS` equal parts of [0, 1].
        kept: Mean MACs as a fraction of those of the whole network.
        seconds: Wall-clock time of the network alone; of several processes: a mean.
        logits: (N, M) float32.
        site_probabilities: The mean of `probabilities` at each site.
        site_open: The mean of `open` at each site.
        opened_by_class: (M, K) float64, how many samples of each class (by label) open each gate, a mean over
            the runs of an ensemble; None unless it was asked for.
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
    opened_by_class: Tensor | None = None

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
    model: GatedModel | SkippingModel,
    split: Split,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    by_class: bool = False,
    progress: Progress = SILENT,
) -> GateRecords:
    """Run `model` (on `device`) over `split` under its policy, in evaluation mode.

    Gates are counted batch by batch: memory grows as N + K, and as M x K if `by_class`. Several processes
    take turns, batch by batch, and all know the whole; where gates are drawn, each runs all batches, as the
    numbers drawn for one follow from those before.
    """
    model.eval()
    cost = model.gate_cost
    # Without classes, all samples are of the same one.
    opened = torch.zeros(model.num_classes if by_class else 1, cost.gates, dtype=torch.float64)
    likely = torch.zeros(cost.gates, dtype=torch.float64)
    histogram = torch.zeros(BINS, dtype=torch.float64)

    def found(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
        started = time.perf_counter()
        runs = model.runs(images)
        decisions = ensemble(runs)
        logits = decisions.logits.float().cpu()
        seconds = time.perf_counter() - started
        rows = labels.cpu() if by_class else torch.zeros(len(labels), dtype=torch.int64)
        spent = torch.zeros(len(labels), dtype=torch.float64)
        for run in runs:
            gates = (run.gates > 0).cpu()
            spent += cost(gates) + model.decider_macs
            opened.index_add_(0, rows, gates.double().expand(len(labels), -1), alpha=1 / len(runs))
        probabilities = model.policy.openness(decisions.odds.double()).cpu()
        likely.add_(probabilities.expand(len(labels), -1).sum(0))
        histogram.add_(torch.histc(probabilities, BINS, 0, 1))
        return logits, spent, seconds

    parts = []
    shared = not model.policy.draws
    with progress.stage("evaluate", total=len(split)) as stage:
        own = split.batches(batch_size, device=device, take=group.own_turn if shared else everything)
        batches = (found(images, labels) for images, labels in own)
        for part in group.in_turns(batches) if shared else batches:
            parts.append(part)
            stage.advance(len(part[1]))
    if shared:
        opened, likely, histogram = (group.total(counted) for counted in (opened, likely, histogram))
    if not model.per_sample:  # every batch has seen the same gates
        histogram /= len(parts)
    open_share, likely = opened.sum(0) / len(split), likely / len(split)
    logits, macs, seconds = zip(*parts, strict=True)
    all_logits = torch.cat(logits)
    all_macs = torch.cat(macs)
    sizes = [site.gates for site in model.sites]
    return GateRecords(
        predictions=all_logits.argmax(1),
        labels=split.labels,
        macs=all_macs,
        open=open_share,
        probabilities=likely,
        histogram=histogram,
        kept=float(all_macs.mean()) / cost.total,
        seconds=sum(seconds) / (group.size() if shared else 1),
        logits=all_logits,
        site_probabilities=tuple(float(part.mean()) for part in likely.split(sizes)),
        site_open=tuple(float(part.mean()) for part in open_share.split(sizes)),
        opened_by_class=opened if by_class else None,
    )
