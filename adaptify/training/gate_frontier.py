"""What other thresholds of gates would give: accuracy against MACs, measured by running the network.

Notation: N samples, K gates. Gates look at what lies behind other gates, so what a threshold gives cannot be
told from what the gates said under another one: the network runs under each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from adaptify.data import Split
from adaptify.parallel import group
from adaptify.progress import SILENT, Progress
from adaptify.runtime.frontier import Frontier, OperatingPoint
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.skipping.model import SkippingModel

SAMPLES = 2000
"""Samples that thresholds are tried on, if there are as many."""

LEVELS = 14
"""Thresholds that are tried, beside that of the policy."""

_LOOKED_AT = 1 << 22  # gates of samples that levels are chosen by


@torch.inference_mode()
def sweep_gates(
    model: GatedModel | SkippingModel,
    base: Callable[[Tensor], Tensor],
    split: Split,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: Progress = SILENT,
) -> Frontier:
    """Run `model` (on `device`, in evaluation mode) under many thresholds, over at most `SAMPLES` of `split`.

    Every batch is read once, and runs under one threshold after the other; several processes take turns,
    batch by batch. Gates that are drawn have no threshold: there is nothing to sweep.

    Args:
        model: A network whose gates look at the sample. Its policy stays as it is.
        base: The network without gates, images (N, C, H, W) -> logits (N, M), for its accuracy.
        split: Samples that had no part in training.
        batch_size: Images per batch.
        device: Where to compute.
        progress: Told how far it is.

    Returns:
        The thresholds that no other beats both in accuracy and MACs, and always that of the policy.
    """
    model.eval()
    policy = model.policy
    rows = max(1, min(batch_size, _LOOKED_AT // model.gate_cost.gates))
    few = _first(split, _LOOKED_AT // model.gate_cost.gates, rows, device)
    seen = torch.cat([policy.openness(model.run(images).odds.double()).cpu() for images, _ in few])
    # Where processes round otherwise, they still try the same thresholds.
    taus = group.from_main(sorted({0.0, policy.tau, *_levels(seen, _weights(model), LEVELS)}))
    spent, right = torch.zeros(2, len(taus), dtype=torch.float64)
    base_right = torch.zeros((), dtype=torch.int64)
    count = min(SAMPLES, len(split))
    with progress.stage("try thresholds", total=count) as stage:
        for number, (images, labels) in enumerate(_first(split, count, batch_size, device)):
            if len(labels[group.own_turn(number, len(labels))]):
                base_right += (base(images).argmax(1) == labels).sum().cpu()
                for index, tau in enumerate(taus):
                    found = model.decide(images, policy.with_tau(tau).decide)
                    macs = model.gate_cost((found.gates > 0).long()) + model.decider_macs
                    spent[index] += int(macs.sum())
                    right[index] += int((found.logits.argmax(1) == labels).sum())
            stage.advance(len(labels))
    spent, right, base_right = (group.total(counted) for counted in (spent, right, base_right))
    points = [
        OperatingPoint((tau,), float(accuracy), float(macs))
        for tau, accuracy, macs in zip(taus, right / count, spent / count, strict=True)
    ]
    return Frontier(
        _pareto(points, keep=policy.tau),
        base_accuracy=int(base_right) / count,
        base_macs=float(model.cost.total),
        policy=policy.to_json(),
    )


def _first(
    split: Split, count: int, batch_size: int, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of `count` samples, chosen by chance where there are more; the same ones every time."""
    some = split.batches(batch_size, shuffle=len(split) > count, device=device)
    for index, (images, labels) in enumerate(islice(some, math.ceil(count / batch_size))):
        left = count - index * batch_size
        yield images[:left], labels[:left]


def _weights(model: GatedModel | SkippingModel) -> Tensor:
    """(K,) float64: the MACs that go when a gate closes, as a mean over the gates of its site."""
    parts = [
        torch.full((site.gates,), (model.gate_cost.total - model.gate_cost.without(index)) / site.gates)
        for index, site in enumerate(model.sites)
    ]
    return torch.cat(parts).double()


def _levels(openness: Tensor, weights: Tensor, count: int) -> list[float]:
    """Thresholds that close more and more of the MACs, in equal steps, as far as samples tell gates apart.

    Args:
        openness: (N, K), in [0, 1].
        weights: (K,), the MACs that each gate closes.
        count: Into how many steps.

    Returns:
        At most `count` - 1 thresholds between 0 and 1, each midway between two of the openness.
    """
    can_open = openness > 0  # what is not is closed by any threshold
    values, order = openness[can_open].sort()
    if not len(values):
        return []
    closed = weights.expand_as(openness)[can_open][order].cumsum(0)
    wanted = closed[-1] * torch.arange(1, count, dtype=torch.float64) / count
    distinct = values.unique_consecutive()
    at = torch.searchsorted(distinct, values[torch.searchsorted(closed, wanted).clamp(max=len(values) - 1)])
    at = at[at < len(distinct) - 1].unique()
    return [float(level) for level in (distinct[at] + distinct[at + 1]) / 2]


def _pareto(points: Sequence[OperatingPoint], keep: float) -> tuple[OperatingPoint, ...]:
    """The points that no other beats, ascending in MACs, and the one with the threshold `keep`."""
    found: list[OperatingPoint] = []
    best = -math.inf
    for point in sorted(points, key=lambda item: (item.macs, -item.accuracy, item.thresholds != (keep,))):
        if point.accuracy > best or point.thresholds == (keep,):
            found.append(point)
        best = max(best, point.accuracy)
    return tuple(found)
