"""What the exits of a network say about the samples of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptify.data import Split
from adaptify.parallel import group
from adaptify.progress import SILENT, Progress
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.policy import GATE
from adaptify.training.records import ExitRecords


@dataclass(frozen=True)
class SeenExits:
    """Everything that the exits of a network say about N samples.

    Attributes:
        exits: Logits (N, M) of every exit.
        output: Logits (N, M) of the network.
        gates: Log-odds (N,) of every learned gate.
        labels: (N,) int64.
    """

    exits: tuple[Tensor, ...]
    output: Tensor
    gates: tuple[Tensor, ...]
    labels: Tensor

    def records(self, score: str, temperatures: Sequence[float] | None = None) -> ExitRecords:
        """How sure every exit is of every sample, and what it predicts.

        Args:
            score: A key of `runtime.policy.SCORES`, or `GATE`: what learned gates say.
            temperatures: What the logits of each exit are divided by first.

        Raises:
            UsageError: There are more or fewer temperatures than exits.
        """
        if score == GATE:
            predictions = torch.stack([logits.argmax(1) for logits in (*self.exits, self.output)])
            return ExitRecords(torch.stack(self.gates), predictions, self.labels)
        return ExitRecords.of(self.exits, self.output, self.labels, score, temperatures)


@torch.inference_mode()
def observe_exits(
    model: AdaptiveModel,
    split: Split,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    progress: Progress = SILENT,
) -> SeenExits:
    """Run everything in `model` (on `device`, in evaluation mode) for every sample of `split`.

    Several processes take turns, batch by batch, and all know the whole.
    """

    def seen(images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        found = model.everything(images)
        logits = [part.float().cpu() for part in (*found.exits.values(), found.logits)]
        return logits, [odds.float().cpu() for odds in found.gates.values()]

    predictions: list[list[Tensor]] = []
    gates: list[list[Tensor]] = []
    with progress.stage("observe exits", total=len(split)) as stage:
        own = split.batches(batch_size, device=device, take=group.own_turn)
        for logits, odds in group.in_turns(seen(images) for images, _ in own):
            predictions.append(logits)
            gates.append(odds)
            stage.advance(len(logits[0]))
    *exits, output = (torch.cat(parts) for parts in zip(*predictions, strict=True))
    all_odds = tuple(torch.cat(parts) for parts in zip(*gates, strict=True))
    return SeenExits(tuple(exits), output, all_odds, split.labels)
