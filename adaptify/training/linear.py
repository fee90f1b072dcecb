"""Training linear gates on cached features: convex problems, solved by averaged SGD in seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adaptify.errors import UsageError, did_you_mean
from adaptify.progress import SILENT, Progress
from adaptify.training.features import FeatureCache
from adaptify.training.linear_loss import LOSSES, LinearLoss, hinge_loss
from adaptify.training.site_rows import SiteRows
from adaptify.training.threads import threads_for

__all__ = ["LOSSES", "LinearGate", "hinge_loss", "train_linear_gates"]

_MOMENTUM = 0.9
# The optimum of a small data set needs as many steps as that of a larger one.
_MIN_STEPS = 4000


class LinearGate(NamedTuple):
    """Parameters of an `nn.Linear`: d = x @ weight.T + bias; the paper's b is -bias.

    Attributes:
        weight: (M, D) float32.
        bias: (M,) float32.
    """

    weight: Tensor
    bias: Tensor


def train_linear_gates(
    cache: FeatureCache,
    classes: int,
    *,
    sites: Sequence[str] | None = None,
    loss: str = "hinge",
    l2: float = 1e-4,
    epochs: int | None = None,
    lr: float = 5.0,
    batch_size: int = 256,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress = SILENT,
) -> dict[str, LinearGate]:
    """Train a gate for every site, each independently on all cached samples (the paper, section 3).

    Minimises mean loss + l2 * ||W||^2 with minibatch SGD (momentum 0.9, cosine schedule), and
    returns the mean of the second half of the iterates. (The paper prints "- lambda ||w||"; the
    penalty has to be added. The bias is not penalised.) Features are standardised, and W in the
    penalty is the weight of standardised features; the result is folded to apply to features as they are.

    Args:
        cache: Features (N, D) of every site.
        classes: M.
        sites: The sites to train gates for; all with floating point values by default.
        loss: A key of `LOSSES`.
        l2: Strength of the penalty.
        epochs: Passes over the samples; by default 20, or more until 4000 steps are taken.
        lr: Initial learning rate for samples of unit mean square norm: D + 1 divides it, the mean
            square norm of standardised features with a 1 for the bias.
        batch_size: Samples per step.
        seed: Of the order of samples. The same seed gives the same gates.
        device: Where the arithmetic is done.
        progress: Told of every epoch.

    Raises:
        UsageError: An unknown loss or site, labels outside the classes, or an option that makes
            training diverge.
    """
    if loss not in LOSSES:
        raise UsageError(
            f"unknown loss '{loss}'{did_you_mean(loss, LOSSES)}", f"Losses: {', '.join(LOSSES)}."
        )
    if min(classes, batch_size, lr) <= 0 or l2 < 0 or (epochs is not None and epochs < 1):
        raise UsageError(
            f"no training with classes={classes}, batch_size={batch_size}, lr={lr}, l2={l2}, epochs={epochs}",
            "All but l2 have to be above 0.",
        )
    if not 0 <= int(cache.labels.min()) <= int(cache.labels.max()) < classes:
        raise UsageError(
            f"labels run from {int(cache.labels.min())} to {int(cache.labels.max())}, "
            f"but there are {classes} classes",
            "Check that the data set belongs to the network.",
        )
    if epochs is None:
        epochs = max(20, _MIN_STEPS // max(1, round(len(cache) / batch_size)))
    if sites is None:
        sites = [name for name, rows in cache.sites.items() if rows.dtype.kind == "f"]
    solver = _Solver(LOSSES[loss], classes, l2, epochs, lr, batch_size, seed, torch.device(device))
    return {name: solver.solve(cache, name, progress) for name in sites}


@dataclass(frozen=True)
class _Solver:
    loss: LinearLoss
    classes: int
    l2: float
    epochs: int
    lr: float
    batch_size: int
    seed: int
    device: torch.device

    @torch.no_grad()
    def solve(self, cache: FeatureCache, name: str, progress: Progress) -> LinearGate:
        mean, scale = _standardisation(cache.site(name))
        mean32, scale32 = mean.float().to(self.device), scale.float().to(self.device)
        shift = -mean32 * scale32
        # The last row of all of these belongs to the bias.
        parameters = torch.zeros(len(mean) + 1, self.classes, device=self.device)
        slopes, velocity, total = (torch.zeros_like(parameters) for _ in range(3))
        weight, bias = parameters[:-1], parameters[-1]
        generator = torch.Generator().manual_seed(self.seed)
        averaged = 0
        with (
            progress.stage(f"train the gate at {name}", self.epochs) as stage,
            threads_for(self.batch_size * parameters.numel()),
        ):
            for epoch in range(self.epochs):
                seen = 0
                for values, labels in cache.minibatches(name, self.batch_size, generator):
                    done = (epoch + seen / len(cache)) / self.epochs
                    seen += len(labels)
                    x, y = torch.addcmul(shift, values.to(self.device), scale32), labels.to(self.device)
                    scores = torch.addmm(bias, x, weight)
                    slope = self.loss.slope(scores, y)
                    torch.mm(x.T, slope, out=slopes[:-1])
                    torch.sum(slope, dim=0, out=slopes[-1])
                    velocity.mul_(_MOMENTUM).add_(slopes, alpha=1 / len(y))
                    velocity[:-1].add_(weight, alpha=2 * self.l2)
                    rate = self.lr / len(parameters) * 0.5 * (1 + math.cos(math.pi * done))
                    parameters.sub_(velocity, alpha=rate)
                    if done >= 0.5:
                        total.add_(parameters)
                        averaged += 1
                stage.advance(loss=float(self.loss.value(scores, y)))
        solution = (total if averaged else parameters).double().cpu() / max(averaged, 1)
        if not torch.isfinite(solution).all():
            raise UsageError(f"training the gate at '{name}' diverged with lr={self.lr}", "Lower lr or l2.")
        # d = W ((x - mean) * scale) + b, written for x itself.
        folded = solution[:-1] * scale.unsqueeze(1)
        return LinearGate(folded.T.contiguous().float(), (solution[-1] - mean @ folded).float())


def _standardisation(rows: SiteRows) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation of every feature, (D,) float64.

    A feature that varies by no more than its type rounds it gets scale 0, and so weight 0.
    """
    first = torch.zeros(rows.width, dtype=torch.float64)
    deviation, squares = torch.zeros_like(first), torch.zeros_like(first)
    for index, block in enumerate(rows.blocks()):
        values = block.double()
        if index == 0:
            first = values.mean(dim=0)  # sums around a value near the mean lose no digits
        values -= first
        deviation += values.sum(dim=0)
        squares += values.square_().sum(dim=0)
    offset = deviation / len(rows)
    std = (squares / len(rows) - offset**2).clamp(min=0).sqrt()
    mean = first + offset
    rounding = float(np.finfo(rows.dtype).eps) * mean.abs()
    return mean, torch.where(std > rounding, 1 / std, 0.0)
