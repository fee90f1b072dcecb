"""The last stages of a run with gates: the file, and what each way to decide does on the test samples."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from adaptify import artifact
from adaptify.data import Split
from adaptify.errors import TargetError
from adaptify.graph.sites import nodes_between
from adaptify.methods import GateFit
from adaptify.pipeline import folder
from adaptify.pipeline.gate_samples import samples_part
from adaptify.pipeline.job import Job, peak_memory
from adaptify.pipeline.reporting import layer_rows, provenance, training_part
from adaptify.report.schema import Report
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.gate_policy import Policy
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.optimize import optimize
from adaptify.runtime.skipping.model import SkippingModel
from adaptify.training.evaluate import evaluate
from adaptify.training.gate_records import GateRecords, observe_gates

RUNS = 5
"""Draws of stochastic gates that are averaged."""

TOLERANCE = 1e-4
"""How far outputs may be from those under masks, relative to the largest: rounding, and nothing else."""

SWEEP = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Thresholds that are tried."""


def conclude_gates(fitted: GateFit, model: GatedModel, job: Job) -> Report:
    """Write the artifact, and report on what was written."""
    for note in fitted.notes:
        job.progress.note(note)
    artifact.save(model.cpu(), job.run.work / folder.MODEL)
    written = artifact.load(job.run.work / folder.MODEL, trust_code=True)
    assert isinstance(written, GatedModel)
    network = AdaptiveModel(job.network.traced).eval()
    size = job.recipe.run.batch_size
    before = evaluate(
        optimize(network, job.device),
        job.data.test,
        batch_size=size,
        device=job.device,
        progress=job.progress,
    )
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
    macs = found.macs
    described = job.data.describe()
    base = job.network.cost.total
    return Report.model_validate(
        {
            **provenance(written),
            "data": described,
            "before": {"accuracy": before.accuracy, "macs": base},
            "after": {
                "accuracy": found.accuracy,
                "macs": float(macs.mean()),
                "kept": float(macs.mean()) / base,
            },
            "macs_per_sample": {
                "mean": float(macs.mean()),
                "median": float(macs.median()),
                "p95": float(macs.quantile(0.95, interpolation="higher")),
            },
            "training": training_part(job.recipe.train.model_dump(mode="json"), fitted.history),
            "gating": {
                **_gating(written, found, fitted),
                **_modes(runs, found, job.data.test, size, job.device),
                "samples": samples_part(written, found, job.data, described["classes"], job.device)
                if written.per_sample
                else None,
            },
            "layers": layer_rows(written, _runs_by_gates(written, found)),
            "timing": {
                **fitted.timing,
                "evaluation_s": found.seconds,
                "retrofit_s": job.seconds(),
                "peak_memory_bytes": peak_memory(),
            },
            "notes": [*job.data.notes, *job.network.notes, *fitted.notes],
        }
    )


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


def _runs_by_gates(model: GatedModel, found: GateRecords) -> dict[str, float]:
    """Name of a node -> share of the samples for which the branch that it is in runs."""
    runs: dict[str, float] = {}
    for site, share in zip(model.sites, found.site_open, strict=True):
        if site.position == "layer" and site.block is not None:
            branch = nodes_between(model.traced.node(site.block.source), model.traced.node(site.block.branch))
            runs |= {node.name: _fraction(share) for node in branch if node.name not in model.whole}
    return runs


def _gating(model: GatedModel, found: GateRecords, fitted: GateFit) -> dict[str, Any]:
    sites = model.sites
    gates = [site.gates for site in sites]
    return {
        "kind": model.policy.to_json()["kind"],
        "data_dependent": model.per_sample,
        "granularity": "layer" if all(site.position == "layer" for site in sites) else "channel",
        "tau": model.policy.tau,
        "histogram": [int(count) for count in found.histogram],
        "polarised": found.polarised,
        "sites": [
            {
                "name": site.name,
                "position": site.position,
                "gates": site.gates,
                "channels": site.size,
                "open": _fraction(share),
            }
            for site, share in zip(sites, found.site_open, strict=True)
        ],
        "activity": [
            {
                "epoch": row.epoch,
                "open": _fraction(sum(p * count for p, count in zip(seen, gates, strict=True)) / sum(gates)),
                "sites": [_fraction(p) for p in seen],
            }
            for row, seen in zip(fitted.history.rows, fitted.activity, strict=True)
        ],
        "gate_macs": model.decider_macs,
    }


def _modes(
    model: GatedModel | SkippingModel,
    chosen: GateRecords,
    split: Split,
    batch_size: int,
    device: torch.device,
) -> dict[str, Any]:
    """Accuracy and MACs of every way to decide, and of other thresholds."""
    policy = model.policy

    def seen(other: Policy) -> GateRecords:
        model.policy = other
        return observe_gates(model, split, batch_size=batch_size, device=device)

    modes = [_mode("threshold", [chosen.accuracy], [chosen.kept], tau=policy.tau)]
    try:
        for name, other in policy.variants().items():
            if not other.draws:
                found = seen(other)
                modes.append(_mode(name, [found.accuracy], [found.kept]))
                continue
            with torch.random.fork_rng():
                torch.manual_seed(0)
                draws = [seen(other) for _ in range(RUNS)]
            kept = [draw.kept for draw in draws]
            modes.append(_mode(name, [draw.accuracy for draw in draws], kept, runs=RUNS))
            averaged = torch.stack([draw.logits.softmax(1) for draw in draws]).mean(0).argmax(1)
            accuracy = float((averaged == chosen.labels).double().mean())
            # The network runs once for every draw.
            modes.append(_mode("ensemble", [accuracy], [sum(kept)], runs=RUNS))
        taus = sorted({*SWEEP, policy.tau})
        sweep = [(tau, chosen if tau == policy.tau else seen(policy.with_tau(tau))) for tau in taus]
    finally:
        model.policy = policy
    return {
        "modes": modes,
        "sweep": [_mode("threshold", [item.accuracy], [item.kept], tau=tau) for tau, item in sweep],
    }


def _mode(
    name: str, accuracy: Sequence[float], kept: Sequence[float], *, tau: float | None = None, runs: int = 1
) -> dict[str, Any]:
    several = len(accuracy) > 1
    return {
        "name": name,
        "tau": tau,
        "runs": runs,
        "accuracy": statistics.mean(accuracy),
        "accuracy_std": statistics.stdev(accuracy) if several else None,
        "kept": statistics.mean(kept),
        "kept_std": statistics.stdev(kept) if several else None,
    }


def _fraction(value: float) -> float:
    """A mean of probabilities, without what rounding put beside [0, 1]."""
    return min(max(value, 0.0), 1.0)
