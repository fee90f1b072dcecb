"""`retrofit`: a checkpoint goes in, a network that skips work comes out, checked and reported."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from adaptify.assembly import Adapted
from adaptify.data import Data
from adaptify.errors import UsageError
from adaptify.pipeline import folder
from adaptify.pipeline.auto_batch import with_smaller_batches
from adaptify.pipeline.calibration import check_promise
from adaptify.pipeline.conclude import conclude
from adaptify.pipeline.exit_run import check_target
from adaptify.pipeline.job import Job, fit_context
from adaptify.pipeline.prepare import (
    Network,
    adopt_gates,
    classes_of,
    make_gating_method,
    open_network,
    open_recipe_data,
    plan_for,
    with_fresh_gates,
)
from adaptify.pipeline.run_files import complete_run
from adaptify.pipeline.unfinished import Beginning, Unfinished, begin_again, new_run
from adaptify.plan import Step
from adaptify.progress import SILENT, Progress
from adaptify.recipe import CalibrateSection, Recipe
from adaptify.reports.schema import Report
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.device import pick_device
from adaptify.runtime.gated import GatedModel


@dataclass(frozen=True)
class Preview:
    """What a retrofit would do.

    Attributes:
        network: The network it would work on.
        steps: The gates it would place.
        model: The network with those gates.
        adopted: Whether they are the trained ones that the network came with; otherwise they are untrained.
    """

    network: Network
    steps: tuple[Step, ...]
    model: Adapted
    adopted: bool


@dataclass(frozen=True)
class Retrofitted:
    """A finished run: its folder and its report."""

    folder: Path
    report: Report


def preview(recipe: Recipe, network: Network | None = None) -> Preview:
    """Do everything but the work: load the network and place untrained gates.

    Args:
        recipe: The settings.
        network: What the recipe's checkpoint holds, where that is open already.

    Raises:
        AdaptifyError: Whatever makes the work impossible.
    """
    network = network or open_network(recipe.model, recipe.data, seed=recipe.run.seed)
    method = make_gating_method(recipe)
    steps = method.place(network.traced, network.cost, classes_of(network))
    # The network as it came is still needed: its accuracy stands beside that of the result.
    model = with_fresh_gates(recipe, network, steps).eval()
    adopted = adopt_gates(model, network)
    if isinstance(model, AdaptiveModel):
        check_target(recipe, model)
    elif recipe.calibrate != CalibrateSection():
        raise UsageError(
            f"{recipe.method} has no exits whose thresholds could be chosen for an accuracy or for MACs",
            "Its gates are trained towards a part of the MACs: train.target=0.5.",
        )
    method.check(model)
    return Preview(network, steps, model, adopted)


def retrofit(
    recipe: Recipe,
    *,
    output: Path | None = None,
    force: bool = False,
    resume: Unfinished | None = None,
    network: Network | None = None,
    data: Data | None = None,
    auto_batch: bool = False,
    progress: Progress = SILENT,
) -> Retrofitted:
    """Retrofit a checkpoint as `recipe` says, and write the run folder.

    The folder appears when everything in it has been written, opened again and checked. What was trained
    when something fails stays in an unfinished one.

    Args:
        recipe: The settings.
        output: The folder to make instead of `runs/<model>-<method>-NNN`.
        force: Replace `output` if it is there.
        resume: An unfinished run with this recipe, to go on with: it becomes what it was to become.
        network: What the recipe's checkpoint holds, where that is open already.
        data: The recipe's images, likewise.
        auto_batch: Whether to take fewer images at a time where the memory does not suffice.
        progress: Told how far the work is.

    Raises:
        AdaptifyError: As each stage does.
    """
    started = time.perf_counter()
    if resume is None:
        folder.check_output(output, force=force)
    device = pick_device(recipe.run.device)
    before = preview(recipe, network)
    network, model = before.network, before.model
    if network.placed:
        progress.note(
            "the network's own exits are trained on; the thresholds and the boosting of its run are not kept"
            if network.traced.own_exits
            else "the exits that the network has are taken out: new ones are put in"
        )
    if before.adopted:
        progress.note("the network comes with these gates: they are trained on")
    elif network.gated is not None:
        progress.note("the gates that the network has are left out: new ones take their place")
    for note in network.notes:
        progress.note(note)
    images = data or open_recipe_data(
        recipe, network.architecture.input, model.num_classes, progress=progress
    )
    check_promise(recipe, len(images.holdout))
    stem = f"{network.architecture.name.partition(':')[2].replace(':', '.')}-{recipe.method}"
    beginning = Beginning.of("retrofit", recipe, network.source, images, device, force=force)
    with new_run(stem, beginning, recipe, output=output, resume=resume, progress=progress) as run:

        def attempt(settings: Recipe) -> Report:
            # What an attempt that ran out of memory has trained is on the disk.
            network = before.network
            model = before.model if settings is recipe else preview(settings, network).model
            context = fit_context(settings, device, run.work, progress)
            context.scratch.mkdir()
            fitted = make_gating_method(settings).fit(model, images, context)
            shutil.rmtree(context.scratch)
            model.plan = plan_for(settings, network, before.steps)
            report = conclude(fitted, model, Job(settings, network, images, run, device, progress, started))
            return complete_run(report, settings, run.work)

        report = with_smaller_batches(
            attempt,
            recipe,
            allowed=auto_batch,
            changed=partial(begin_again, run, beginning),
            progress=progress,
        )
    return Retrofitted(run.final, report)


def exits_rows(model: AdaptiveModel) -> list[dict[str, Any]]:
    """The exits that are placed in `model`: where, and the MACs of a sample that leaves there."""
    return [
        {
            "name": item.site.name,
            "channels": item.site.channels,
            "macs_before": item.site.macs_before,
            "gate_macs": gate,
            "macs": macs,
        }
        for item, gate, macs in zip(model.exits, model.gate_macs, model.exit_macs(), strict=False)
    ]


def gates_rows(model: GatedModel) -> list[dict[str, Any]]:
    """The gates that are placed in `model`: where, and the MACs with all of one site closed."""
    return [
        {
            "name": site.name,
            "position": site.position,
            "channels": site.size,
            "gates": site.gates,
            "macs_closed": model.gate_cost.without(index),
        }
        for index, site in enumerate(model.sites)
    ]
