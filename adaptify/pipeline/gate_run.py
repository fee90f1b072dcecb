"""The last stages of a run with gates: the frontier, the file, and what it does on the test samples."""

from __future__ import annotations

import torch

from adaptify import artifact
from adaptify.data.identity import fingerprint
from adaptify.errors import ModelError, TargetError
from adaptify.methods import GateFit
from adaptify.pipeline import folder
from adaptify.pipeline.gate_reporting import activity_part, gating_part, modes_part, outcome_part
from adaptify.pipeline.job import Job, peak_memory
from adaptify.pipeline.outcome import effects_part, size_of
from adaptify.pipeline.reporting import provenance, training_part
from adaptify.pipeline.speed import fast_form_of, measure_speed, with_speed
from adaptify.reports.schema import Report
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.optimize import optimize
from adaptify.runtime.skipping.model import SkippingModel
from adaptify.training.evaluate import evaluate
from adaptify.training.gate_frontier import SAMPLES, sweep_gates
from adaptify.training.gate_records import observe_gates

TOLERANCE = 1e-4
"""How far outputs may be from those under masks, relative to the largest: rounding, and nothing else."""


def conclude_gates(fitted: GateFit, model: GatedModel, job: Job) -> Report:
    """Write the artifact with its frontier, and report on what was written.

    Raises:
        TargetError: Skipping what gates close gives other outputs than masking it.
    """
    for note in fitted.notes:
        job.progress.note(note)
    network = optimize(AdaptiveModel(job.network.traced).eval(), job.device)
    if model.per_sample:
        _add_frontier(model.cpu(), network, job)
    artifact.save(model.cpu(), job.run.work / folder.MODEL)
    written = artifact.load(job.run.work / folder.MODEL, trust_code=True)
    assert isinstance(written, GatedModel)
    size = job.recipe.run.batch_size
    before = evaluate(network, job.data.test, batch_size=size, device=job.device, progress=job.progress)
    written.to(job.device)
    # What is reported is what runs: with gates that look at samples, a network that skips what they close.
    runs = _checked(written, job) if written.per_sample else written
    found = observe_gates(
        runs,
        job.data.test,
        batch_size=size,
        device=job.device,
        by_class=written.per_sample,
        progress=job.progress,
    )
    described = job.data.describe()
    base = job.network.cost.total
    report = Report.model_validate(
        {
            **provenance(written),
            "data": described,
            "before": {"accuracy": before.accuracy, "macs": base, **size_of(job.network.traced.root)},
            **outcome_part(written, found, base),
            "class_effects": effects_part(
                described["classes"], found.labels, before.predictions, found.predictions
            ),
            "held_out": _held_out(written, job),
            "training": training_part(job.recipe.train.model_dump(mode="json"), fitted.history),
            "gating": {
                **gating_part(written, found, job.data, described["classes"], job.device),
                "activity": activity_part(written, fitted),
                **modes_part(runs, found, job.data.test, size, job.device),
            },
            "timing": {
                **fitted.timing,
                "evaluation_s": found.seconds,
                "retrofit_s": job.seconds(),
                "peak_memory_bytes": peak_memory(),
            },
            "notes": [*job.data.notes, *job.network.notes, *fitted.notes],
        }
    )
    try:
        with job.progress.stage("time"):
            fast = runs if isinstance(runs, SkippingModel) else fast_form_of(written, job.device)
            speed = measure_speed(network, fast, job.data.test, base, job.device, job.data.name)
    except ModelError as error:
        return report.model_copy(update={"notes": [*report.notes, f"no time was taken: {error.message}"]})
    return with_speed(report, speed)


def _add_frontier(model: GatedModel, network: AdaptiveModel, job: Job) -> None:
    """Put into the plan of `model` what other thresholds would give on held-out samples.

    Args:
        model: The network with gates that look at the sample, on the CPU.
        network: The network as it came, in the form that runs fast.
        job: The run.
    """
    assert model.plan is not None
    held = job.data.holdout
    frontier = sweep_gates(
        optimize(model, job.device),
        network,
        held,
        batch_size=job.recipe.run.batch_size,
        device=job.device,
        progress=job.progress,
    )
    (chosen,) = (point for point in frontier.points if point.thresholds == (model.policy.tau,))
    known = {
        "frontier": frontier.to_json(),
        "calibration": {
            "split": "holdout",
            "samples": min(len(held), SAMPLES),
            "images": fingerprint(held),
            "request": {},
            "accuracy": chosen.accuracy,
            "base_accuracy": frontier.base_accuracy,
            "macs": chosen.macs,
        },
    }
    model.plan = model.plan.model_copy(update=known)


def _held_out(written: GatedModel, job: Job) -> dict[str, float]:
    """What held-out images give: as the frontier has it, or else measured."""
    if written.per_sample:
        assert written.plan is not None
        assert written.plan.calibration is not None
        return {name: written.plan.calibration[name] for name in ("accuracy", "macs")}
    size = job.recipe.run.batch_size
    found = observe_gates(
        written, job.data.holdout, batch_size=size, device=job.device, progress=job.progress
    )
    return {"accuracy": found.accuracy, "macs": float(found.macs.mean())}


def _checked(written: GatedModel, job: Job) -> SkippingModel:
    """The form of a network that skips what its gates close, held against masking on a batch of test images.

    Raises:
        TargetError: They differ.
    """
    fast = optimize(written, job.device)
    images, _ = next(iter(job.data.test.batches(job.recipe.run.batch_size, device=job.device)))
    with torch.inference_mode():
        found = fast.decide(images, fast.policy.decide)
        sizes = [decider.gates for decider in written.deciders]
        decided = iter(found.gates.split(sizes, 1))
        # The same decisions for both: rounding may move one that is close to the threshold.
        wanted = written.decide(images, lambda odds: next(decided)).logits
    scale = float(wanted.abs().max().clamp_min(torch.finfo(wanted.dtype).tiny))
    difference = float((found.logits - wanted).abs().max()) / scale
    if not difference <= TOLERANCE:
        raise TargetError(
            f"skipping gives other outputs than masking what gates close: they differ by {difference:.2g} of "
            "the largest one",
            "This is a bug in adaptify, or an operation whose result depends on the batch: please report it.",
        )
    return fast
