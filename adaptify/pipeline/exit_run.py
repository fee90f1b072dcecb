"""The last stages of a run with exits: thresholds, the file, what it does on the test samples."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from adaptify import artifact
from adaptify.data.identity import fingerprint
from adaptify.errors import TargetError, UsageError
from adaptify.methods import ExitFit
from adaptify.pipeline import folder
from adaptify.pipeline.calibration import calibrate_model
from adaptify.pipeline.job import Job, peak_memory
from adaptify.pipeline.reporting import build_report, training_part
from adaptify.pipeline.speed import measure_speed, with_speed
from adaptify.recipe import Recipe
from adaptify.reports.schema import Report
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.budget import Budget
from adaptify.runtime.optimize import optimize
from adaptify.runtime.policy import ThresholdPolicy
from adaptify.settings import Section
from adaptify.text import quantity
from adaptify.training.evaluate import evaluate
from adaptify.training.records import save_records


def conclude_exits(fitted: ExitFit, model: AdaptiveModel, job: Job) -> Report:
    """Choose the thresholds, write the artifact and the records, and report on what was written.

    Raises:
        TargetError: The request cannot be met, or skipping changes what samples do.
    """
    request = job.recipe.calibrate.request()
    doubts = calibrate_model(
        model,
        fitted.holdout,
        request,
        score=fitted.score,
        temperatures=fitted.temperatures,
        seed=job.recipe.run.seed,
        images=fingerprint(job.data.holdout),
    )
    for note in (*fitted.notes, *doubts):
        job.progress.note(note)
    if not any(model.policy.enabled(index) for index in range(len(model.exits))):
        job.progress.note(
            "no sample leaves early at this choice, and nothing is saved: allow more with --max-drop, ask "
            "for a --budget, or train for longer"
        )
    artifact.save(model, job.run.work / folder.MODEL)
    # What is reported was measured on the file that was written, really skipping.
    written = artifact.load(job.run.work / folder.MODEL, trust_code=True)
    assert isinstance(written, AdaptiveModel)
    network = optimize(AdaptiveModel(job.network.traced).eval(), job.device)
    fast = optimize(written, job.device)
    evaluation = evaluate(
        fast,
        job.data.test,
        batch_size=job.recipe.run.batch_size,
        device=job.device,
        progress=job.progress,
    )
    _check_skipping(evaluation.exit_index != fitted.test.exit_index(model.policy), job.run.final)
    save_records({"holdout": fitted.holdout, "test": fitted.test}, job.run.work / folder.RECORDS)
    timing = {
        **fitted.timing,
        "evaluation_s": evaluation.seconds,
        "retrofit_s": job.seconds(),
        "peak_memory_bytes": peak_memory(),
    }
    trained = fitted.history is not None
    report = build_report(
        written,
        job.data.describe(),
        job.data.test,
        evaluation,
        fitted.test,
        timing=timing,
        notes=[*job.data.notes, *job.network.notes, *fitted.notes, *doubts],
        before=_predictions_before(network, job) if trained else None,
        training=None
        if fitted.history is None
        else training_part(job.recipe.train.model_dump(mode="json"), fitted.history),
    )
    with job.progress.stage("time"):
        base = job.network.cost.total
        speed = measure_speed(network, fast, job.data.test, base, job.device, job.data.name)
    return with_speed(report, speed)


def _predictions_before(network: AdaptiveModel, job: Job) -> Tensor:
    """(N,) int64: what the network as it came makes of the test samples."""
    size = job.recipe.run.batch_size
    return evaluate(
        network, job.data.test, batch_size=size, device=job.device, progress=job.progress
    ).predictions


def check_target(recipe: Recipe, model: AdaptiveModel) -> None:
    """Refuse before the work what no training can reach.

    Args:
        recipe: What is asked for.
        model: The network with its exits.

    Raises:
        UsageError: There are more or fewer thresholds than exits, or one of them costs more than it can save.
        TargetError: The first exit costs more than what may be kept.
    """
    target = recipe.calibrate
    if target.thresholds is not None and len(target.thresholds) != len(model.exits):
        names = ", ".join(item.site.name for item in model.exits)
        raise UsageError(
            f"{len(target.thresholds)} thresholds for {len(model.exits)} exits",
            f"Give one per exit, in order: {names}.",
        )
    _check_order(model, recipe.gates)
    cheapest = model.exit_macs()[0] / model.cost.total
    if target.max_macs is None:
        return
    kept = Budget.of(target.max_macs).fraction(model.cost.total)
    if kept < cheapest:
        raise TargetError(
            f"{kept:.1%} of the MACs cannot be reached: "
            f"the first exit, {model.exits[0].site.name}, is at {cheapest:.1%}",
            "Ask for more MACs, or put an exit earlier in the network with --sites.",
        )


# What makes a head smaller, by the option of a method that does it.
_SMALLER = {"width": "gates.width", "pool": "gates.pool", "head": "gates.head=linear"}


def _check_order(model: AdaptiveModel, gates: Section) -> None:
    options = ", ".join(word for name, word in _SMALLER.items() if name in type(gates).model_fields)
    hint = f"Take a smaller head there ({options}), or other --sites." if options else "Take other --sites."
    macs = model.exit_macs(ThresholdPolicy((0.0,) * len(model.exits), model.policy.score))
    for item, here, later in zip(model.exits, macs, macs[1:], strict=False):
        if here >= later:
            raise UsageError(
                f"leaving at {item.site.name} takes {quantity(here)} MACs, and going on to the next exit "
                f"{quantity(later)}: it cannot pay",
                hint,
            )


def _check_skipping(differing: Tensor, run: Path) -> None:
    """Contract: sparse = dense. Scores differ by rounding between batch sizes, so a few may tip over."""
    count = int(differing.sum())
    if count > max(2, len(differing) // 500):
        raise TargetError(
            f"{count} of {len(differing)} samples leave elsewhere when work is really skipped",
            f"This is a bug in adaptify; {run} was not written. Please report it with `adaptify env`.",
        )
