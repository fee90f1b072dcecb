"""`prune` of a run whose gates look at images: what no image runs goes, and the rest decides on as it did."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from adaptify.data import Data
from adaptify.errors import UsageError
from adaptify.methods import GateFit
from adaptify.pipeline.dead_blocks import JUDGED_BY, find_dead_blocks, verify_on_samples, without_blocks
from adaptify.pipeline.gate_run import conclude_gates
from adaptify.pipeline.job import Job
from adaptify.pipeline.outcome import size_of
from adaptify.pipeline.prepare import Network
from adaptify.pipeline.pruning import Pruned, pruning_part, verify
from adaptify.plan import GatesStep, Plan, Step
from adaptify.recipe import Recipe
from adaptify.reports.schema import Report
from adaptify.reports.schema.pruning import Pruning
from adaptify.runtime.gated import GatedModel
from adaptify.training.history import History


@dataclass(frozen=True)
class Removal:
    """A network before and after.

    Attributes:
        gated: The network of the run.
        smaller: The same without its dead blocks and their gates; None if no block is dead.
        blocks: Names of the dead blocks.
        pruned: The smaller network with all of its gates open, and what is said about it.
    """

    gated: GatedModel
    smaller: GatedModel | None
    blocks: tuple[str, ...]
    pruned: Pruned


def remove_dead_blocks(
    recipe: Recipe, network: Network, gated: GatedModel, data: Data | None, device: torch.device
) -> Removal:
    """Remove the blocks of a run that no held-out image runs.

    Raises:
        UsageError: There are no images, or something is asked for that only the training of gates can give.
        ModelError: Every block with a gate is dead.
        TargetError: What came of it is not what was predicted.
    """
    if recipe.prune.target is not None:
        raise UsageError(
            "gates that look at images are not pruned to a target: blocks that no image runs are removed",
            "Leave --target out; how much runs is learned: `adaptify retrofit RUN` trains the gates on.",
        )
    if recipe.prune.finetune:
        raise UsageError(
            "removing what no image runs changes nothing that training on could make up for",
            "Leave --finetune out; `adaptify retrofit RUN` trains network and gates on.",
        )
    if data is None:
        raise UsageError(
            "which blocks no image runs is seen on held-out images, and there are none",
            "Say which: --data FOLDER, cifar10:FOLDER, digits or fake:N.",
        )
    dead = find_dead_blocks(gated, data.holdout, batch_size=recipe.run.batch_size, device=device)
    gated.cpu()
    seen = f"{len(data.holdout)} held-out images"
    if not dead:
        note = f"no block is dead: each is run by some of the {seen}"
        return Removal(gated, None, (), _pruned(gated, (), network.cost.total, note))
    smaller, steps = without_blocks(gated, network.traced, _gates_step(gated), dead)
    opened = torch.cat(
        [torch.full((site.gates,), site.block is None or site.block.name not in dead) for site in gated.sites]
    )
    note = f"none of the {seen} runs {', '.join(dead)}: removed"
    pruned = _pruned(smaller, steps, int(gated.gate_cost(opened.long())), note)
    verify(pruned)
    return Removal(gated, smaller, dead, pruned)


def conclude_removal(removal: Removal, job: Job, reported: Report | None) -> Report:
    """Hold the smaller network against the run on the test images, write it, and report on what was written.

    Args:
        removal: The networks.
        job: The run.
        reported: The report of the run, where it knows the accuracy of the checkpoint that it came from.

    Raises:
        TargetError: The networks differ.
    """
    smaller, whole = removal.smaller, job.network
    assert smaller is not None
    size, images = job.recipe.run.batch_size, job.data.test
    verified = verify_on_samples(
        removal.gated, smaller, removal.blocks, images, batch_size=size, device=job.device
    )
    notes = [
        *removal.pruned.notes,
        f"{verified.would_run} of the {len(images)} test images would have run one of them; for the others "
        f"logits differ from the run's by {verified.difference:.1e} of the largest",
        "what is said of gates is in parts of the MACs that are left with all of them open",
    ]
    smaller.plan = Plan(
        architecture=whole.architecture.to_json(),
        steps=(*whole.steps, *removal.pruned.steps),
        method=removal.gated.plan.method if removal.gated.plan is not None else None,
        source=whole.source,
        base_macs=whole.cost.total,
    )
    traced = removal.pruned.traced
    left = replace(job, network=replace(whole, traced=traced, cost=removal.pruned.cost))
    report = conclude_gates(
        GateFit(history=History((), None), activity=(), notes=tuple(notes)), smaller, left
    )
    base, macs = whole.cost.total, report.after.macs
    before: dict[str, Any] = {"macs": base, **size_of(whole.traced.root)}
    effects = report.class_effects
    if reported is not None:
        before["accuracy"] = reported.before.accuracy
        was = {row.name: row.before for row in reported.class_effects}
        effects = [row.model_copy(update={"before": was[row.name]}) for row in effects if row.name in was]
    part = pruning_part(job.recipe, whole, removal.pruned) | {"device": str(job.device)}
    return report.model_copy(
        update={
            "before": report.before.model_copy(update=before),
            "after": report.after.model_copy(update={"kept": macs / base, **size_of(traced.root)}),
            "class_effects": effects,
            "training": None,
            "pruning": Pruning.model_validate(part),
        }
    )


def _pruned(model: GatedModel, steps: tuple[Step, ...], macs: int, note: str) -> Pruned:
    return Pruned(
        traced=model.backbone(),
        steps=steps,
        macs=macs,
        reference=lambda images: model.decide(images, torch.ones_like).logits,
        judged_by=JUDGED_BY,
        round_to=1,
        frozen={},
        notes=(note,),
    )


def _gates_step(model: GatedModel) -> GatesStep:
    assert model.plan is not None
    step = model.plan.steps[-1]
    assert isinstance(step, GatesStep)
    return step
