"""`prune`: a network goes in, the same with fewer channels or blocks comes out, checked and reported."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptify import artifact
from adaptify.data import Data, Split
from adaptify.data.open import Part
from adaptify.errors import AdaptifyError, ModelError, UsageError
from adaptify.methods import FitContext, JudgingMethod
from adaptify.pipeline import folder
from adaptify.pipeline.auto_batch import with_smaller_batches
from adaptify.pipeline.choosing import choose, gates_of, needs_training, plan_gates
from adaptify.pipeline.dead_blocks import can_have_dead_blocks
from adaptify.pipeline.dead_run import conclude_removal, remove_dead_blocks
from adaptify.pipeline.finetune import train_on
from adaptify.pipeline.job import Job, fit_context, peak_memory
from adaptify.pipeline.outcome import effects_part, size_of
from adaptify.pipeline.prepare import Network, classes_of, make_method, open_network, open_recipe_data
from adaptify.pipeline.pruning import Pruned, pruning_part, verify
from adaptify.pipeline.reporting import layer_rows, provenance, training_part
from adaptify.pipeline.run_files import complete_run
from adaptify.pipeline.speed import fast_form_of, measure_speed, with_speed
from adaptify.pipeline.unfinished import Beginning, Unfinished, begin_again, new_run
from adaptify.plan import Plan
from adaptify.progress import SILENT, Progress
from adaptify.recipe import Recipe
from adaptify.reports.schema import DataInfo, Report, read_report
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.device import pick_device
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.optimize import optimize
from adaptify.training.evaluate import Evaluation, evaluate
from adaptify.training.options import LoopOptions

UNMEASURED = "accuracy was not measured: --data measures it"


@dataclass(frozen=True)
class Opened:
    """What is to be pruned.

    Attributes:
        network: The network; for a run with gates, without them.
        gated: The network of a run with gates.
        data: The images, if there are any.
    """

    network: Network
    gated: GatedModel | None
    data: Data | None


@dataclass(frozen=True)
class Preview:
    """What pruning would do.

    Attributes:
        opened: What is to be pruned.
        pruned: The network after; None where gates have to be trained to know.
        gates: The network with the gates that would be trained, then.
    """

    opened: Opened
    pruned: Pruned | None
    gates: GatedModel | None


@dataclass(frozen=True)
class Finished:
    """A finished run: its folder and its report."""

    folder: Path
    report: Report


def open_all(
    recipe: Recipe,
    *,
    network: Network | None = None,
    data: Data | None = None,
    progress: Progress = SILENT,
) -> Opened:
    """Open the network and the data of a recipe; data without a source is left out.

    Args:
        recipe: The settings.
        network: What the recipe's checkpoint holds, where that is open already.
        data: The recipe's images, likewise.
        progress: Told what was found.

    Raises:
        AdaptifyError: Whatever makes the work impossible.
    """
    given = network
    network = network or open_network(recipe.model, recipe.data, seed=recipe.run.seed)
    classes = classes_of(network)  # it must return one score per class
    refuse_exits(network)
    gated = (
        gates_of(recipe.model.checkpoint, trust_code=recipe.model.trust_pickle)
        if given is None
        else given.gated
    )
    if gated is not None and isinstance(make_method(recipe), JudgingMethod):
        gated = None
        progress.note(f"the gates that the network has are left out: {recipe.method} judges its channels")
    for note in network.notes:
        progress.note(note)
    if network.placed:
        progress.note("the exits that the network has are left out: they were trained on all channels")
    if gated is None and recipe.prune.target is None:
        raise UsageError("no target to prune to", "Give the fraction of MACs to keep: --target 0.5.")
    if recipe.prune.finetune and not recipe.data.source:
        raise UsageError(
            f"{recipe.prune.finetune} epochs of training on, and no images to train on",
            "Say which: --data FOLDER, cifar10:FOLDER, digits or fake:N.",
        )
    if recipe.data.source and data is None:
        data = open_recipe_data(
            recipe, network.architecture.input, classes, parts=parts_needed(recipe, gated), progress=progress
        )
    return Opened(network, gated, data)


def refuse_exits(network: Network) -> None:
    """Refuse a network that has exits of its own.

    Raises:
        ModelError: It has.
    """
    if network.traced.own_exits:
        raise ModelError(
            f"{network.source.checkpoint} has {len(network.traced.own_exits)} exits of its own: what they "
            "need cannot be pruned yet",
            "Let samples leave at them: adaptify retrofit --method boostnet.",
        )


def preview(recipe: Recipe, *, progress: Progress = SILENT) -> Preview:
    """Do everything but what takes long: train, measure, write.

    Raises:
        AdaptifyError: Whatever makes the work impossible.
    """
    opened = open_all(recipe, progress=progress)
    if needs_training(recipe, opened.gated):
        return Preview(opened, None, plan_gates(recipe, opened.network)[0])
    device = pick_device(recipe.run.device)
    if opened.gated is not None and can_have_dead_blocks(opened.gated):
        removal = remove_dead_blocks(recipe, opened.network, opened.gated, opened.data, device)
        return Preview(opened, removal.pruned, None)
    return Preview(opened, choose(recipe, opened.network, opened.gated, opened.data, device, None), None)


def prune(
    recipe: Recipe,
    *,
    output: Path | None = None,
    force: bool = False,
    resume: Unfinished | None = None,
    network: Network | None = None,
    data: Data | None = None,
    auto_batch: bool = False,
    progress: Progress = SILENT,
) -> Finished | None:
    """Prune as `recipe` says, and write the run folder.

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

    Returns:
        The run; None if it was to lose the blocks that no image runs, and has none.

    Raises:
        AdaptifyError: As each stage does.
    """
    started = time.perf_counter()
    if resume is None:
        folder.check_output(output, force=force)
    device = pick_device(recipe.run.device)
    opened = open_all(recipe, network=network, data=data, progress=progress)
    network, data = opened.network, opened.data
    kind = "pruned" if opened.gated is not None else recipe.method
    stem = f"{network.architecture.name.partition(':')[2].replace(':', '.')}-{kind}"
    removal = None
    if opened.gated is not None and can_have_dead_blocks(opened.gated):
        removal = remove_dead_blocks(recipe, network, opened.gated, data, device)
        if removal.smaller is None:
            for note in removal.pruned.notes:
                progress.note(note)
            return None
    beginning = Beginning.of("prune", recipe, network.source, data, device, force=force)
    with new_run(stem, beginning, recipe, output=output, resume=resume, progress=progress) as run:

        def attempt(settings: Recipe) -> Report:
            if removal is not None:
                assert opened.data is not None
                job = Job(settings, opened.network, opened.data, run, device, progress, started)
                report = conclude_removal(removal, job, _reported_before(settings, opened))
            else:
                report = _prune(settings, opened, fit_context(settings, device, run.work, progress), started)
            return complete_run(report, settings, run.work)

        report = with_smaller_batches(
            attempt,
            recipe,
            allowed=auto_batch,
            changed=partial(begin_again, run, beginning),
            progress=progress,
        )
    return Finished(run.final, report)


def _prune(recipe: Recipe, opened: Opened, context: FitContext, started: float) -> Report:
    """Remove what gates close for all samples, or what was judged; write the artifact, and report on it."""
    network, data, device, progress = opened.network, opened.data, context.device, context.progress
    before = AdaptiveModel(network.traced).eval()
    reported = _reported_before(recipe, opened)
    images = data.test if data is not None else None
    seen = None if reported is not None else _evaluate(before, images, recipe, device, progress)
    pruned = choose(recipe, network, opened.gated, data, device, context)
    for note in pruned.notes:
        progress.note(note)
    difference = verify(pruned)
    model = AdaptiveModel(pruned.traced).eval()
    tuned = train_on(model, before, data, recipe, context, pruned.history) if data is not None else None
    model.plan = _plan(recipe, network, pruned)
    artifact.save(model.cpu(), context.folder / folder.MODEL)
    # What is measured is the file that was written.
    written = artifact.load(context.folder / folder.MODEL, trust_code=True)
    assert isinstance(written, AdaptiveModel)
    found = _evaluate(written, images, recipe, device, progress)
    held = None
    if data is not None and "holdout" in parts_needed(recipe, opened.gated):
        held = _evaluate(written, data.holdout, recipe, device, progress)
    base, macs = network.cost.total, written.cost.total
    history = tuned if tuned is not None and tuned.rows else pruned.history
    report = Report.model_validate(
        {
            **provenance(written),
            "data": data.describe() if data is not None else None,
            "before": {
                "macs": base,
                "accuracy": reported.before.accuracy if reported else seen.accuracy if seen else None,
                **size_of(network.traced.root),
            },
            "after": {
                "macs": macs,
                "kept": macs / base,
                "accuracy": found.accuracy if found is not None else None,
                **size_of(written.backbone().root),
            },
            "held_out": {"accuracy": held.accuracy, "macs": macs} if held is not None else None,
            "class_effects": _effects(data, reported, seen, found),
            "macs_per_sample": {"mean": macs, "median": macs, "p95": macs},
            "training": training_part(recipe.train.model_dump(mode="json"), history) if history else None,
            "pruning": pruning_part(recipe, network, pruned) | {"device": str(device)},
            "layers": layer_rows(written),
            "timing": {
                **pruned.timing,
                "prune_s": time.perf_counter() - started,
                "peak_memory_bytes": peak_memory(),
            },
            "notes": [
                *network.notes,
                *pruned.notes,
                *(data.notes if data is not None else [UNMEASURED]),
                f"pruned and masked network differ by {difference:.1e} of the largest output",
            ],
        }
    )
    with progress.stage("time"):
        was, now = (fast_form_of(item, device) for item in (before, written))
        speed = measure_speed(was, now, images, base, device, data.name if data is not None else None)
    return with_speed(report, speed)


def _effects(
    data: Data | None, reported: Report | None, before: Evaluation | None, after: Evaluation | None
) -> list[dict[str, Any]]:
    """What became of each class; nothing where it was not measured, or is not known of the network before."""
    if data is None or after is None:
        return []
    was: Tensor | list[float] | None = before.predictions if before is not None else None
    if reported is not None and reported.class_effects:
        was = [row.before for row in reported.class_effects]
    return effects_part(data.classes, after.labels, was, after.predictions) if was is not None else []


def parts_needed(recipe: Recipe, gated: GatedModel | None) -> tuple[Part, ...]:
    """Which parts of the data are needed."""
    method = make_method(recipe)
    trains = needs_training(recipe, gated) or recipe.prune.finetune > 0 or can_have_dead_blocks(gated)
    recalibrates = isinstance(recipe.train, LoopOptions) and recipe.train.recalibrate > 0
    judges = isinstance(method, JudgingMethod) and method.needs_images
    if trains:
        return ("train", "holdout", "test")
    return ("train", "test") if recalibrates or judges else ("test",)


def _reported_before(recipe: Recipe, opened: Opened) -> Report | None:
    """The report of a run with gates, if it knows the accuracy of the checkpoint that the run came from.

    With its gates open, the network of the run is another one.
    """
    if opened.gated is None or opened.data is None:
        return None
    try:
        report = read_report(Path(recipe.model.checkpoint) / folder.REPORT)
    except AdaptifyError:
        return None
    same = report.data is not None and report.data == DataInfo.model_validate(opened.data.describe())
    return report if same and report.measured else None


def _evaluate(
    model: AdaptiveModel, images: Split | None, recipe: Recipe, device: torch.device, progress: Progress
) -> Evaluation | None:
    if images is None:
        return None
    fast = optimize(model, device)
    size = recipe.run.batch_size
    return evaluate(fast, images, batch_size=size, device=device, progress=progress)


def _plan(recipe: Recipe, network: Network, pruned: Pruned) -> Plan:
    options = recipe.model_dump(mode="json", include={"gates", "train", "prune"})
    return Plan(
        architecture=network.architecture.to_json(),
        steps=(*network.steps, *pruned.steps),
        method={"name": recipe.method, "options": options},
        source=network.source,
        base_macs=network.cost.total,
    )
