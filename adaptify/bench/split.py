"""Which part of a promised saving arrives, and where the rest goes.

If time followed MACs, an adaptive network would take the original's time times the part of the MACs that it
keeps. What it takes beyond that is measured part by part while it runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaptify.bench.parts import Key, Stopwatch
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.policy import never_leave
from adaptify.runtime.spans import GATES, NETWORK, ROWS
from adaptify.runtime.timing import wait

_ROUNDS = 5


@dataclass(frozen=True)
class Spent:
    """What samples of a batch of images cost.

    Attributes:
        macs: Mean MACs of one of them, those of deciding included.
        network: The same without those of deciding.
        reached: For networks with exits: what part of the images runs each segment.
    """

    macs: float
    network: float
    reached: tuple[float, ...] = ()

    @classmethod
    def on(cls, model: Any, parts: Sequence[Tensor]) -> Spent:
        """What `parts`, batches of images, cost in the fast form of a network."""
        if isinstance(model, AdaptiveModel):
            left = torch.cat([model.run(part).exit_index.cpu() for part in parts])
            macs = torch.tensor(model.exit_macs(model.policy), dtype=torch.float64)
            # With nothing to decide, what its exits cost is left.
            ends = [*(item.site.macs_before for item in model.exits)]
            ends.append(model.exit_macs(never_leave(len(model.exits)))[-1] if ends else int(macs[-1]))
            reached = tuple(float((left >= index).double().mean()) for index in range(len(ends)))
            network = torch.tensor(ends, dtype=torch.float64)[left].mean()
            return cls(float(macs[left].mean()), float(network), reached)
        gates = torch.cat([model.run(part).gates.double().cpu() for part in parts])
        network = float(model.gate_cost(gates).double().mean()) * model.policy.runs
        return cls(network + model.decider_macs * model.policy.runs, network)


@dataclass(frozen=True)
class Split:
    """The time of an adaptive network, in parts of the original's time.

    `kept + layers + batches + gates + rows + other = time`.

    Attributes:
        kept: The part of the MACs that is kept: what was promised.
        time: What it takes, in the runs in which its parts were measured.
        layers: What layers that run take beyond their MACs: early ones take longer per MAC than late ones.
        batches: What layers take longer because the batch has become smaller; None where that cannot be told
            from `layers`.
        gates: Deciding: exit heads, networks of gates; beyond their MACs.
        rows: Taking rows out of the batch, and putting them back.
        other: Putting results in order, and Python.
    """

    kept: float
    time: float
    layers: float
    batches: float | None
    gates: float
    rows: float
    other: float


def split_time(
    fast: Any,
    original: Callable[[Tensor], Tensor],
    parts: Sequence[Tensor],
    spent: Spent,
    base_macs: float,
    device: torch.device,
) -> Split:
    """Measure where the time of an adaptive network goes.

    Args:
        fast: The network in its fast form.
        original: The original in its fast form.
        parts: Batches of images (N, C, H, W).
        spent: What those cost in `fast`.
        base_macs: What one image costs in the original.
        device: Where they run.
    """
    runs: list[dict[Key, float]] = []
    dense: list[dict[Key, float]] = []
    whole: list[float] = []
    has_exits = isinstance(fast, AdaptiveModel)
    for _ in range(_ROUNDS):
        wait(device)
        whole.append(_listen(original, parts, device)["other", 0])
        runs.append(_listen(fast, parts, device))
        if has_exits:
            with _running_on(fast):
                dense.append(_listen(fast, parts, device))
    unit = statistics.median(whole)
    taken = {part: _median(runs, part) / unit for part in (NETWORK, GATES, ROWS, "other")}
    kept, promised = spent.macs / base_macs, spent.network / base_macs
    # What the segments that are run would take at the size of the whole batch.
    expected = taken[NETWORK]
    if has_exits:
        expected = (
            sum(part * _median(dense, NETWORK, index) for index, part in enumerate(spent.reached)) / unit
        )
    return Split(
        kept=kept,
        time=sum(taken.values()),
        layers=expected - promised,
        batches=taken[NETWORK] - expected if has_exits else None,
        gates=taken[GATES] - (kept - promised),
        rows=taken[ROWS],
        other=taken["other"],
    )


def _listen(
    run: Callable[[Tensor], object], parts: Sequence[Tensor], device: torch.device
) -> dict[Key, float]:
    """Seconds of the parts of running all batches."""
    watch = Stopwatch(device)
    for part in parts:
        with watch.running():
            run(part)
    return watch.seconds()


@contextmanager
def _running_on(model: AdaptiveModel) -> Any:
    """Let no sample leave, and no exit decide."""
    policy = model.policy
    model.policy = never_leave(len(model.exits), policy.score)
    try:
        yield
    finally:
        model.policy = policy


def _median(runs: Sequence[Mapping[Key, float]], part: str, index: int | None = None) -> float:
    return statistics.median(
        sum(value for key, value in run.items() if key[0] == part and index in (None, key[1])) for run in runs
    )
