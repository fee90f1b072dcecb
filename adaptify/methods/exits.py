"""What methods with exits share."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from adaptify.data import Data
from adaptify.errors import ModelError, UsageError
from adaptify.graph.cost import CostModel
from adaptify.graph.placement import default_exits
from adaptify.graph.sites import ExitSite, find_exits, select_sites
from adaptify.graph.trace import Traced
from adaptify.methods.base import ExitFit, FitContext
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.optimize import optimize
from adaptify.training.loop import train
from adaptify.training.objective import Objective
from adaptify.training.observe import observe_exits
from adaptify.training.optimizer import GateParameters
from adaptify.training.options import LoopOptions
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
        batch_size=context.batch_size,
        progress=context.progress,
    )
    trained = time.perf_counter()
    fast = optimize(model, context.device)
    holdout, test = (
        observe_exits(
            fast,
            split,
            batch_size=context.batch_size,
            device=context.device,
            progress=context.progress,
        )
        for split in (data.holdout, data.test)
    )
    model.cpu()
    temperatures = None
    if scale:
        # On the half that thresholds are chosen on where accuracy is promised: the other has no part in it.
        rows = torch.from_numpy(halves(len(data.holdout), context.seed)[0])
        labels = data.holdout.labels[rows]
        temperatures = tuple(fit_temperature(logits[rows], labels) for logits in holdout.exits)
    return ExitFit(
        score=score,
        temperatures=temperatures,
        holdout=holdout.records(score, temperatures),
        test=test.records(score, temperatures),
        history=history,
        timing={"training_s": trained - started, "forward_pass_s": time.perf_counter() - trained},
    )
