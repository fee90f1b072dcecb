"""`retrofit`: a checkpoint goes in, a network that skips work comes out, checked and reported."""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from adaptify import artifact
from adaptify.environment import describe_environment
from adaptify.errors import TargetError, UsageError
from adaptify.files import write_text
from adaptify.methods import FitContext
from adaptify.pipeline import folder
from adaptify.pipeline.calibration import calibrate_model
from adaptify.pipeline.prepare import (
    Network,
    classes_of,
    make_method,
    open_network,
    open_recipe_data,
    plan_for,
)
from adaptify.pipeline.reporting import build_report
from adaptify.plan import PlaceExit
from adaptify.progress import SILENT, Progress
from adaptify.recipe import CalibrateSection, Recipe, write_recipe
from adaptify.report.html import write_html
from adaptify.report.schema import Report, write_report
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.device import pick_device
from adaptify.runtime.optimize import optimize
from adaptify.training.evaluate import evaluate
from adaptify.training.records import save_records


@dataclass(frozen=True)
class Preview:
    """What a retrofit would do.

    Attributes:
        network: The network it would work on.
        steps: The gates it would place.
        model: The network with those gates, untrained.
    """

    network: Network
    steps: tuple[PlaceExit, ...]
    model: AdaptiveModel


@dataclass(frozen=True)
class Retrofitted:
    """A finished run: its folder and its report."""

    folder: Path
    report: Report


def preview(recipe: Recipe) -> Preview:
    """Do everything but the work: load the network and place untrained gates.

    Raises:
        AdaptifyError: Whatever makes the work impossible.
    """
    network = open_network(recipe.model, recipe.data)
    steps = make_method(recipe).place(network.traced, network.cost, classes_of(network))
    model = AdaptiveModel(network.traced, artifact.place_exits(network.traced, steps)).eval()
    _check_target(recipe.calibrate, model)
    return Preview(network, steps, model)


def retrofit(
    recipe: Recipe, *, output: Path | None = None, force: bool = False, progress: Progress = SILENT
) -> Retrofitted:
    """Retrofit a checkpoint as `recipe` says, and write the run folder.

    The folder appears when everything in it has been written, opened again and checked.

    Raises:
        AdaptifyError: As each stage does; then no folder is left behind.
    """
    started = time.perf_counter()
    folder.check_output(output, force=force)
    device = pick_device(recipe.run.device)
    before = preview(recipe)
    network, model = before.network, before.model
    if network.placed:
        progress.note("the exits that the network has are left out: new ones take their place")
    for note in network.notes:
        progress.note(note)
    data = open_recipe_data(recipe, network.architecture.input, model.num_classes, progress=progress)
    method = make_method(recipe)
    stem = f"{network.architecture.name.partition(':')[2].replace(':', '.')}-{recipe.method}"
    with folder.new_run(stem, output=output, force=force) as run:
        context = FitContext(device, recipe.run.batch_size, recipe.run.seed, run.work / "scratch", progress)
        context.scratch.mkdir()
        fitted = method.fit(model, data, context)
        shutil.rmtree(context.scratch)
        model.plan = plan_for(recipe, network, before.steps)
        doubts = calibrate_model(model, fitted.holdout, recipe.calibrate.request(), score=method.score)
        for note in (*fitted.notes, *doubts):
            progress.note(note)
        artifact.save(model, run.work / folder.MODEL)
        # What is reported was measured on the file that was written, really skipping.
        written = artifact.load(run.work / folder.MODEL, trust_code=True)
        evaluation = evaluate(
            optimize(written, device),
            data.test,
            batch_size=recipe.run.batch_size,
            device=device,
            progress=progress,
        )
        _check_skipping(evaluation.exit_index != fitted.test.exit_index(model.policy), run.final)
        timing = {
            **fitted.timing,
            "evaluation_s": evaluation.seconds,
            "retrofit_s": time.perf_counter() - started,
            "peak_memory_bytes": peak_memory(),
        }
        report = build_report(
            written,
            data.describe(),
            data.test,
            evaluation,
            fitted.test,
            timing=timing,
            notes=[*data.notes, *network.notes, *fitted.notes, *doubts],
        )
        write_recipe(recipe, run.work / folder.RECIPE)
        write_text(run.work / folder.ENVIRONMENT, json.dumps(describe_environment(), indent=1) + "\n")
        save_records({"holdout": fitted.holdout, "test": fitted.test}, run.work / folder.RECORDS)
        write_report(report, run.work / folder.REPORT)
        write_html(report, run.work / folder.PAGE)
    return Retrofitted(run.final, report)


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _check_target(target: CalibrateSection, model: AdaptiveModel) -> None:
    """Refuse before the work what no training can reach."""
    if target.thresholds is not None and len(target.thresholds) != len(model.exits):
        names = ", ".join(item.site.name for item in model.exits)
        raise UsageError(
            f"{len(target.thresholds)} thresholds for {len(model.exits)} exits",
            f"Give one per exit, in order: {names}.",
        )
    cheapest = model.exit_macs()[0] / model.cost.total
    if target.max_macs is not None and target.max_macs < cheapest:
        raise TargetError(
            f"{target.max_macs:.1%} of the MACs cannot be reached: "
            f"the first exit, {model.exits[0].site.name}, is at {cheapest:.1%}",
            "Ask for more MACs, or put an exit earlier in the network with --sites.",
        )


def _check_skipping(differing: Tensor, run: Path) -> None:
    """Contract: sparse = dense. Scores differ by rounding between batch sizes, so a few may tip over."""
    count = int(differing.sum())
    if count > max(2, len(differing) // 500):
        raise TargetError(
            f"{count} of {len(differing)} samples leave elsewhere when work is really skipped",
            f"This is a bug in adaptify; {run} was not written. Please report it with `adaptify env`.",
        )
