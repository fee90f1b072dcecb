"""What methods with exits share."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from adaptify.data import Data, Split
from adaptify.errors import ModelError, UsageError
from adaptify.graph.cost import CostModel
from adaptify.graph.placement import default_exits
from adaptify.graph.sites import ExitSite, find_exits, select_sites
from adaptify.graph.trace import Traced
from adaptify.methods.base import ExitFit, FitContext
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.optimize import optimize
from adaptify.runtime.policy import GATE
from adaptify.training.loop import train
from adaptify.training.objective import Objective
from adaptify.training.optimizer import GateParameters
from adaptify.training.options import LoopOptions
from adaptify.training.records import ExitRecords
from adaptify.training.risk import halves
from adaptify.training.temperature import fit_temperature


def choose_sites(traced: Traced, cost: CostModel, wanted: Sequence[str] | None) -> tuple[ExitSite, ...]:
    """The sites that were named, or the end of every stage but the last.

    Raises:
        UsageError: A name is no site, or the network has exits of its own.
        ModelError: There is no place where samples could leave.
    """
    if traced.own_exits:
        raise UsageError(
            f"{type(traced.root).__name__} has {len(traced.own_exits)} exits of its own, and no others can "
            "be added",
            "Use them: --method boostnet, without gates.sites; gates.ensemble=none train.epochs=0 takes them "
            "as they are.",
        )
    sites = find_exits(traced, cost)
    chosen = default_exits(traced, cost, sites) if wanted is None else select_sites(sites, wanted)
    if not chosen:
        raise ModelError(
            f"{type(traced.root).__name__} has no place where samples could leave",
            "`adaptify inspect` lists what was found; every path must meet in one tensor somewhere.",
        )
    return chosen


def train_exits(
    model: AdaptiveModel,
    data: Data,
    options: LoopOptions,
    objective: Objective,
    context: FitContext,
    *,
    score: str,
    scale: bool = False,
) -> ExitFit:
    """Train a network together with its exits, and note what each exit says about held-out and test samples.

    Args:
        model: The network, trained in place.
        data: The images.
        options: Of the loop.
        objective: What is minimised.
        context: Where and how to train.
        score: What will decide who leaves: a key of `SCORES`, or `GATE`.
        scale: Whether the logits of each exit are divided by a temperature before that (Guo et al., 2017).
    """
    started = time.perf_counter()
    # A network that is not trained is taken as it is, with its statistics.
    options = options if options.epochs else options.model_copy(update={"recalibrate": 0})
    history = train(
        model,
        data,
        options,
        objective=objective,
        device=context.device,
        seed=context.seed,
        folder=context.folder,
        gates=GateParameters(model.gate_parameters),
        everything=model.everything,
        states=context.states_of("network"),
        progress=context.progress,
    )
    trained = time.perf_counter()
    fast = optimize(model, context.device)
    holdout = _observe(fast, data.holdout, context)
    test = _observe(fast, data.test, context)
    model.cpu()
    temperatures = None
    if scale:
        # On the half that thresholds are chosen on where accuracy is promised: the other has no part in it.
        rows = torch.from_numpy(halves(len(data.holdout), context.seed)[0])
        labels = data.holdout.labels[rows]
        temperatures = tuple(fit_temperature(logits[rows], labels) for logits in holdout[0][:-1])
    return ExitFit(
        score=score,
        temperatures=temperatures,
        holdout=_records(holdout, data.holdout.labels, score, temperatures),
        test=_records(test, data.test.labels, score, temperatures),
        history=history,
        timing={"training_s": trained - started, "forward_pass_s": time.perf_counter() - trained},
    )


_Seen = tuple[list[Tensor], list[Tensor]]
"""Logits (N, M) of every exit and the output, and log-odds (N,) of every learned gate."""


@torch.inference_mode()
def _observe(model: AdaptiveModel, split: Split, context: FitContext) -> _Seen:
    predictions: list[list[Tensor]] = []
    gates: list[list[Tensor]] = []
    with context.progress.stage("observe exits", total=len(split)) as stage:
        for images, labels in split.batches(context.batch_size, device=context.device):
            found = model.everything(images)
            predictions.append([logits.float().cpu() for logits in (*found.exits.values(), found.logits)])
            gates.append([odds.float().cpu() for odds in found.gates.values()])
            stage.advance(len(labels))
    return [torch.cat(parts) for parts in zip(*predictions, strict=True)], [
        torch.cat(parts) for parts in zip(*gates, strict=True)
    ]


def _records(seen: _Seen, labels: Tensor, score: str, temperatures: Sequence[float] | None) -> ExitRecords:
    (*exits, output), gates = seen
    if score == GATE:
        predictions = torch.stack([logits.argmax(1) for logits in (*exits, output)])
        return ExitRecords(torch.stack(gates), predictions, labels)
    return ExitRecords.of(exits, output, labels, score, temperatures)
