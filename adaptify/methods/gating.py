"""What methods with gates that close something share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import nn

from adaptify.data import Data
from adaptify.graph.gate_sites import GateSite
from adaptify.graph.program import compile_graph
from adaptify.methods.base import FitContext, GateFit
from adaptify.plan import GatePlace
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.view import NetworkView
from adaptify.training.gate_records import GateRecords, observe_gates
from adaptify.training.history import Validation
from adaptify.training.loop import train
from adaptify.training.objective import Distillation, Objective
from adaptify.training.optimizer import GateParameters
from adaptify.training.options import Distill, LoopOptions


def gate_place(site: GateSite) -> GatePlace:
    """The site as a plan names it."""
    return GatePlace(
        name=site.name,
        position=site.position,
        size=site.size,
        filters=site.filters,
        always_open=site.always_open,
        block=site.block.name if site.block is not None else None,
    )


def distil_from_backbone(
    options: Distill | None, model: NetworkView, device: torch.device
) -> Distillation | None:
    """Distil from a copy of the network as it is now, without its gates; None if nothing is asked for."""
    if options is None:
        return None
    backbone = model.backbone()
    root = backbone.with_own_tensors().root.to(device).eval().requires_grad_(False)
    run = compile_graph(backbone.graph)
    return Distillation(lambda images: run(root, images), options.weight, options.temperature)


def train_gates(
    model: GatedModel,
    data: Data,
    options: LoopOptions,
    objective: Objective,
    gates: GateParameters,
    context: FitContext,
    *,
    is_eligible: Callable[[GateRecords], bool],
    companion: nn.Module | None = None,
    observe: Callable[[GateRecords], Mapping[str, float]] | None = None,
) -> GateFit:
    """Train a network and its gates together, and see after each epoch what gates do to held-out samples.

    Args:
        model: The network, trained in place.
        data: The images.
        options: Of the loop.
        objective: What is minimised.
        gates: The parameters of the gates.
        context: Where and how to train.
        is_eligible: Whether an epoch that gave these records may be the best one.
        companion: Trained beside the network; see `train`.
        observe: Further figures of an epoch.
    """
    started = time.perf_counter()
    last: list[GateRecords] = []

    def validate(network: nn.Module) -> Validation:
        seen = observe_gates(model, data.holdout, batch_size=context.batch_size, device=context.device)
        last[:] = [seen]
        return Validation(seen.accuracy, seen.kept, is_eligible(seen), tuple(seen.site_probabilities))

    history = train(
        model,
        data,
        options,
        objective=objective,
        device=context.device,
        seed=context.seed,
        folder=context.folder,
        gates=gates,
        companion=companion,
        validate=validate,
        observe=lambda epoch, network: observe(last[0]) if observe is not None else {},
        states=context.states_of("network"),
        batch_size=context.batch_size,
        progress=context.progress,
    )
    return GateFit(
        history=history,
        activity=tuple(row.validation.activity for row in history.rows),
        timing={"training_s": time.perf_counter() - started},
    )


def with_gate_rate(options: LoopOptions, rate: float, gates: int, images: int) -> LoopOptions:
    """The options with the learning rate `rate * gates / steps` for gates, unless they have one.

    What pulls at a gate is shared by all of them, and there are only so many steps to get from open to
    closed: the rate that brings a gate there grows as their number and falls as the steps.
    """
    steps = options.epochs * images // (options.batch_size * options.accumulate)
    if options.gate_lr is not None or not steps:
        return options
    return options.model_copy(update={"gate_lr": rate * gates / steps})
