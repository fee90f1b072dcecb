"""What `prune` takes out of a network: by importance, by gates that it learns, or by those of a run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from adaptify import artifact
from adaptify.assembly import reshape
from adaptify.data import Data
from adaptify.errors import UsageError
from adaptify.freeze import freeze
from adaptify.graph.channel_cost import ChannelCost
from adaptify.graph.channels import find_channels
from adaptify.graph.masking import mask_channels
from adaptify.graph.program import compile_graph
from adaptify.graph.removal_plan import keep_to_json
from adaptify.graph.selection import TOLERANCE, select_channels
from adaptify.methods import FitContext, GateFit, GatingMethod, JudgingMethod
from adaptify.pipeline.prepare import Network, classes_of, make_method, with_fresh_gates
from adaptify.pipeline.pruning import Pruned
from adaptify.plan import GatesStep, RemoveChannels, Step
from adaptify.recipe import Recipe
from adaptify.runtime.gated import GatedModel

JUDGED_IMAGES = 1024
"""Training images that importance is judged on, where it needs images."""

# Gradients are averaged inside a batch: of a trained network's, large batches leave noise.
_JUDGED_BATCH = 64

LEARNED = "learned gates"
"""What a report says channels were judged by, if gates chose them."""


def has_gates(checkpoint: str | os.PathLike[str]) -> bool:
    """Whether a file or run folder holds a network with gates that close something."""
    if not artifact.is_artifact(checkpoint):
        return False
    return any(isinstance(step, GatesStep) for step in artifact.read_plan(checkpoint).steps)


def gates_of(checkpoint: str, *, trust_code: bool = False) -> GatedModel | None:
    """The network with gates that a run or artifact holds, if it is one."""
    if not has_gates(checkpoint):
        return None
    made = artifact.load(checkpoint, trust_code=trust_code)
    return made if isinstance(made, GatedModel) else None


def needs_training(recipe: Recipe, gated: GatedModel | None) -> bool:
    """Whether gates have to be trained before anything can be chosen."""
    return gated is None and isinstance(make_method(recipe), GatingMethod)


def choose(
    recipe: Recipe,
    network: Network,
    gated: GatedModel | None,
    data: Data | None,
    device: torch.device,
    context: FitContext | None,
) -> Pruned:
    """Remove what the recipe's method, or the gates of the run, can do without.

    Args:
        recipe: The settings.
        network: The network to prune; for a run with gates, without them.
        gated: The network of a run with gates.
        data: The images, if there are any.
        device: Where to compute.
        context: For training gates; not needed where there is nothing to train.

    Raises:
        UsageError: Images are needed, and there are none.
        ModelError: The gates look at samples, or the network has no place for gates.
        TargetError: The target cannot be met; the message names what can.
    """
    if gated is not None:
        return _frozen(gated, recipe, ())
    method = make_method(recipe)
    if isinstance(method, JudgingMethod):
        return _judged(recipe, method, network, data, device)
    assert isinstance(method, GatingMethod)
    return _learned(recipe, method, network, data, context)


def _judged(
    recipe: Recipe, method: JudgingMethod[Any, Any], network: Network, data: Data | None, device: torch.device
) -> Pruned:
    assert recipe.prune.target is not None
    notes: list[str] = []
    batches: Iterable[tuple[Tensor, Tensor]] = ()
    if method.needs_images:
        if data is None:
            raise UsageError(
                f"the importance '{method.criterion}' is judged on training images, and there are none",
                "Say which: --data FOLDER, cifar10:FOLDER, digits or fake:N.",
            )
        size = min(recipe.run.batch_size, _JUDGED_BATCH)
        shuffled = data.train.batches(size, shuffle=True, seed=recipe.run.seed, device=device)
        batches = islice(shuffled, max(1, JUDGED_IMAGES // size))
        count = min(len(data.train), JUDGED_IMAGES)
        notes.append(f"the importance of channels was judged on {count} training images")
    channels = find_channels(network.traced)
    cost = ChannelCost(channels, network.cost)
    scores = method.scores(channels, batches, device)
    selection = select_channels(cost, scores, recipe.prune.target, round_to=recipe.prune.round_to)
    if selection.round_to < recipe.prune.round_to:
        notes.append(
            f"channels are multiples of {selection.round_to}, not of {recipe.prune.round_to}: "
            f"no such choice is within {TOLERANCE:.0%} of the target"
        )
    step = RemoveChannels.model_validate({"keep": keep_to_json(channels, selection.keep)})
    masked = mask_channels(channels, selection.keep)
    run = compile_graph(masked.graph)
    root = masked.root.eval()
    return Pruned(
        traced=reshape(network.traced, [step]),
        steps=(step,),
        macs=selection.macs,
        reference=lambda images: run(root, images),
        judged_by=method.criterion,
        round_to=selection.round_to,
        frozen=channels.frozen_reasons,
        notes=tuple(notes),
    )


def plan_gates(recipe: Recipe, network: Network) -> tuple[GatedModel, tuple[Step, ...]]:
    """Put untrained gates into the network that can be frozen once they are trained.

    Raises:
        UsageError: The method has no such gates.
        ModelError: The network has no place for them.
        TargetError: The target is missed even with all of them closed.
    """
    method = make_method(recipe)
    assert isinstance(method, GatingMethod)
    steps = method.place(network.traced, network.cost, classes_of(network))
    model = with_fresh_gates(recipe, network, steps)
    if not isinstance(model, GatedModel) or model.per_sample:
        raise UsageError(
            f"{recipe.method} with these options decides for each image: nothing can be removed for all",
            "Prune with --method gumbel gates.kind=independent, or with --method importance.",
        )
    if recipe.prune.target is not None:
        model.gate_cost.check_target(recipe.prune.target)
    method.check(model)
    return model, steps


def _learned(
    recipe: Recipe,
    method: GatingMethod[Any, Any],
    network: Network,
    data: Data | None,
    context: FitContext | None,
) -> Pruned:
    if data is None or context is None:
        raise UsageError(
            f"{recipe.method} learns on images what to remove, and there are none",
            "Say which: --data FOLDER; or prune without: --method importance.",
        )
    model, steps = plan_gates(recipe, network)
    fitted = method.fit(model, data, context)
    assert isinstance(fitted, GateFit)
    return _frozen(model.cpu(), recipe, steps, fitted)


def _frozen(
    model: GatedModel, recipe: Recipe, steps: tuple[Step, ...], fitted: GateFit | None = None
) -> Pruned:
    target, round_to = recipe.prune.target, recipe.prune.round_to
    frozen = freeze(model, target, round_to=round_to)
    notes = list(fitted.notes) if fitted else []
    left = int(model.gate_cost(model.policy.decide(model.odds()).long())) / model.cost.total
    if frozen.moved:
        notes.append(
            f"at threshold {model.policy.tau:g} the gates leave {left:.1%} of the MACs: what is closed was "
            f"chosen in the order of their probabilities, and {frozen.macs / model.cost.total:.1%} are left; "
            "where that costs accuracy, --finetune trains on"
        )
    body = tuple(step for step in steps if not isinstance(step, GatesStep))
    return Pruned(
        traced=frozen.traced,
        steps=(*body, *frozen.steps),
        macs=frozen.macs,
        reference=frozen.reference,
        judged_by=LEARNED,
        round_to=round_to,
        frozen=find_channels(model.backbone()).frozen_reasons,
        notes=tuple(notes),
        history=fitted.history if fitted else None,
        timing=fitted.timing if fitted else {},
    )
