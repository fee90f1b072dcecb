"""From a recipe to what the work starts with: the network as a graph, its sites, the data."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from adaptify import artifact
from adaptify.assembly import Adapted, assemble
from adaptify.checkpoint.load import load_model
from adaptify.data import Data, check_labels, open_data
from adaptify.data.open import Part
from adaptify.errors import UsageError
from adaptify.files import sha256
from adaptify.graph.agreement import check_agreement
from adaptify.graph.cost import CostModel
from adaptify.graph.trace import Traced, trace
from adaptify.input_spec import InputSpec
from adaptify.methods import GatingMethod, Method, find_method
from adaptify.models.registry import Architecture, is_public_name, resolve
from adaptify.plan import ExitsStep, GatesStep, Plan, Source, Step
from adaptify.progress import SILENT, Progress
from adaptify.recipe import DataSection, ModelSection, Recipe
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.gated import GatedModel

_ALONE = (
    "the network was trained to correct what its exits say (boostnet): its last classifier alone, which is "
    "what this starts from, is less accurate"
)


_TEST: tuple[Part, ...] = ("test",)


@dataclass(frozen=True)
class Network:
    """A checkpoint as a graph.

    Attributes:
        architecture: What it is, with the input it will be given.
        traced: The network as a graph.
        cost: Its MACs.
        source: The file and its hash.
        notes: What loading and tracing had to decide.
        placed: Exits that the file has already, which are not part of the graph: site -> threshold (None:
            never taken).
        steps: What was done to the architecture to come to the graph.
        gated: The same network with the gates that the file has, which close parts of it.
    """

    architecture: Architecture
    traced: Traced
    cost: CostModel
    source: Source
    notes: tuple[str, ...]
    placed: Mapping[str, float | None] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    gated: GatedModel | None = None


def open_network(model: ModelSection, data: DataSection | None = None, *, seed: int = 0) -> Network:
    """Load the checkpoint of a recipe and trace it.

    Args:
        model: The checkpoint: a file, a run folder, or the name of a public architecture (`adaptify:NAME`,
            `torchvision:NAME`, `timm:NAME`), which gets random weights.
        data: How images are shown to it.
        seed: Of random weights.

    Raises:
        UsageError, ModelError: As loading and tracing do.
    """
    if is_public_name(model.checkpoint) and not Path(model.checkpoint).exists():
        return _build_fresh(model, data, seed)
    if artifact.is_artifact(model.checkpoint):
        return _open_artifact(model, data)
    loaded = load_model(
        model.checkpoint,
        arch=model.arch,
        arch_kwargs=model.arch_kwargs or None,
        trust_pickle=model.trust_pickle,
    )
    source = Source(checkpoint=model.checkpoint, sha256=loaded.checkpoint.sha256)
    architecture = _with_input(loaded.architecture, data)
    traced = trace(loaded.module.eval(), architecture.input.shape)
    check_agreement(loaded.module, traced)
    return traced_network(traced, architecture, source, loaded.notes)


def open_recipe_data(
    recipe: Recipe,
    spec: InputSpec,
    classes: int,
    *,
    parts: Collection[Part] = ("train", "holdout", "test"),
    progress: Progress = SILENT,
) -> Data:
    """Open the data of a recipe for a network with `classes` outputs.

    Raises:
        UsageError: The data cannot be used, or its labels do not match the network.
    """
    data = open_section(recipe.data, spec, seed=recipe.run.seed, parts=parts, progress=progress)
    check_labels(data, classes)
    return data


def open_section(
    section: DataSection,
    spec: InputSpec,
    *,
    seed: int = 0,
    parts: Collection[Part] = _TEST,
    progress: Progress = SILENT,
) -> Data:
    """Open the data that a recipe names. Which images are for testing does not depend on the seed.

    Raises:
        UsageError: The data cannot be used.
    """
    return open_data(
        section.source,
        input=spec,
        holdout=section.holdout,
        val_split=section.val_split,
        seed=seed,
        workers=section.workers,
        skip_corrupt=section.skip_corrupt,
        parts=parts,
        progress=progress,
    )


def make_method(recipe: Recipe) -> Method[Any, Any]:
    """The method of a recipe with its options."""
    return find_method(recipe.method)(recipe.gates, recipe.train)


def make_gating_method(recipe: Recipe) -> GatingMethod[Any, Any]:
    """The method of a recipe that puts gates into a network.

    Raises:
        UsageError: Its method does something else.
    """
    method = make_method(recipe)
    if not isinstance(method, GatingMethod):
        raise UsageError(
            f"{recipe.method} puts no gates into a network", f"Use adaptify prune --method {recipe.method}."
        )
    return method


def plan_for(recipe: Recipe, network: Network, steps: tuple[Step, ...]) -> Plan:
    """The plan of a retrofitted network, before anything is calibrated."""
    options = recipe.model_dump(mode="json", include={"gates", "train"})
    return Plan(
        architecture=network.architecture.to_json(),
        steps=(*network.steps, *steps),
        method={"name": recipe.method, "options": options},
        source=network.source,
        base_macs=network.cost.total,
    )


def with_fresh_gates(recipe: Recipe, network: Network, steps: tuple[Step, ...]) -> Adapted:
    """The network, with tensors of its own, and untrained gates: the same ones for the same seed."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(recipe.run.seed)
        return assemble(network.traced.with_own_tensors(), steps)


def adopt_gates(model: Adapted, network: Network) -> bool:
    """Let the gates of `model` start as those that the network came with, if they are the same gates.

    Returns:
        Whether they were; else the gates of `model` are left as they are.
    """
    gated = network.gated
    if gated is None or not isinstance(model, GatedModel):
        return False
    fresh, trained = model.gate_state(), gated.gate_state()
    if model.sites != gated.sites or {name: tensor.shape for name, tensor in fresh.items()} != {
        name: tensor.shape for name, tensor in trained.items()
    }:
        return False
    model.load_state_dict(trained, strict=False)
    return True


def classes_of(network: Network) -> int:
    """Number of classes that the network tells apart.

    Raises:
        ModelError: It does not return one score per class.
    """
    return AdaptiveModel(network.traced).num_classes


def _build_fresh(model: ModelSection, data: DataSection | None, seed: int) -> Network:
    """A network with random weights, to be trained from scratch."""
    architecture = _with_input(resolve(model.checkpoint, model.arch_kwargs), data)
    if model.arch is not None and resolve(model.arch).name != architecture.name:
        raise UsageError(
            f"the checkpoint is the architecture {architecture.name}, and --arch is {model.arch}",
            "Leave --arch out, or name a file as the checkpoint.",
        )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        module = architecture.build()
    source = Source(checkpoint=f"{architecture.name} (random weights, seed {seed})", sha256="")
    note = f"{architecture.name} starts from random weights: train it for many epochs"
    return traced_network(trace(module.eval(), architecture.input.shape), architecture, source, (note,))


def _open_artifact(model: ModelSection, data: DataSection | None) -> Network:
    """The backbone of a network that adaptify made before."""
    plan = artifact.read_plan(model.checkpoint)
    architecture = _with_input(Architecture.from_json(plan.architecture), data)
    made = artifact.load(model.checkpoint, trust_code=model.trust_pickle, input=architecture.input)
    source = Source(checkpoint=model.checkpoint, sha256=sha256(artifact.artifact_path(model.checkpoint)))
    return network_of(made, plan, architecture, source)


def network_of(made: Adapted, plan: Plan, architecture: Architecture, source: Source) -> Network:
    """The backbone of a network that adaptify made before, sharing its tensors.

    Args:
        made: The network.
        plan: How it was made.
        architecture: What its plan starts from.
        source: Where it comes from.
    """
    # The graph as the plan's steps made it: tracing it anew would give its nodes other names.
    boosted = isinstance(made, AdaptiveModel) and made.boost is not None
    network = traced_network(made.backbone(), architecture, source, (_ALONE,) if boosted else ())
    placed: dict[str, float | None] = {}
    if isinstance(made, AdaptiveModel):
        limits = (limit if math.isfinite(limit) else None for limit in made.policy.thresholds)
        placed = dict(zip((item.site.name for item in made.exits), limits, strict=True))
    steps = tuple(step for step in plan.steps if not isinstance(step, (ExitsStep, GatesStep)))
    gated = made if isinstance(made, GatedModel) else None
    return replace(network, placed=placed, steps=steps, gated=gated)


def _with_input(architecture: Architecture, data: DataSection | None) -> Architecture:
    return architecture if data is None else replace(architecture, input=input_spec(architecture.input, data))


def traced_network(
    traced: Traced, architecture: Architecture, source: Source, notes: tuple[str, ...]
) -> Network:
    """A network without anything that adaptify did to it, with its cost and what is to be said of it."""
    cost = CostModel(traced)
    said = [*notes, *traced.notes]
    if cost.uncounted:
        said.append(f"MACs of {', '.join(cost.uncounted)} are unknown and count as 0")
    return Network(architecture, traced, cost, source, tuple(said))


def input_spec(spec: InputSpec, data: DataSection) -> InputSpec:
    """The input with what the user said about size and normalisation.

    Raises:
        UsageError: The values do not fit the number of channels.
    """
    if data.input_size is not None:
        height, width = data.input_size
        spec = replace(spec, height=height, width=width, resize=None)
    for name in ("mean", "std"):
        values = getattr(data, name)
        if values is None:
            continue
        if len(values) not in (1, spec.channels):
            raise UsageError(
                f"{name} has {len(values)} values for images of {spec.channels} channels",
                "Give one value, or one per channel.",
            )
        spec = replace(spec, **{name: values if len(values) == spec.channels else values * spec.channels})
    if min(spec.std) <= 0:
        raise UsageError(f"std is {min(spec.std)}", "Standard deviations are positive.")
    return spec
