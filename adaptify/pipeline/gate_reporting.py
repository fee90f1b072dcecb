"""What gates do to the test samples, as the parts of a report."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from adaptify.data import Data, Split
from adaptify.graph.sites import nodes_between
from adaptify.methods import GateFit
from adaptify.pipeline.gate_samples import samples_part
from adaptify.pipeline.outcome import size_of
from adaptify.pipeline.reporting import layer_rows
from adaptify.runtime.gate_policy import Policy
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.skipping.model import SkippingModel
from adaptify.training.gate_records import GateRecords, observe_gates

RUNS = 5
"""Draws of stochastic gates that are averaged."""

SWEEP = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Thresholds that are tried."""


def outcome_part(model: GatedModel, found: GateRecords, base_macs: float) -> dict[str, Any]:
    """What the network does with the test samples: `after`, `macs_per_sample` and `layers` of a report.

    Args:
        model: The network with gates.
        found: What became of each sample.
        base_macs: MACs of the network as it came, for one sample.
    """
    macs = found.macs
    mean = float(macs.mean())
    return {
        "after": {
            "accuracy": found.accuracy,
            "macs": mean,
            "kept": mean / base_macs,
            **size_of(model),
        },
        "macs_per_sample": {
            "mean": mean,
            "median": float(macs.median()),
            "p95": float(macs.quantile(0.95, interpolation="higher")),
        },
        "layers": layer_rows(model, _runs_by_gates(model, found), _kept_by_gates(model, found)),
    }


def gating_part(
    model: GatedModel, found: GateRecords, data: Data, classes: Sequence[str], device: torch.device
) -> dict[str, Any]:
    """Where gates are, and what they do with the test samples: most of the `gating` of a report.

    Args:
        model: The network, on `device`.
        found: What became of each sample; by class, where gates look at samples.
        data: The data set.
        classes: Names of the classes.
        device: Where to compute.
    """
    sites = model.sites
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
        "gate_macs": model.decider_macs,
        "samples": samples_part(model, found, data, classes, device) if model.per_sample else None,
    }


def activity_part(model: GatedModel, fitted: GateFit) -> list[dict[str, Any]]:
    """How open gates were during training: the `activity` of a report's gates."""
    gates = [site.gates for site in model.sites]
    return [
        {
            "epoch": row.epoch,
            "open": _fraction(sum(p * count for p, count in zip(seen, gates, strict=True)) / sum(gates)),
            "sites": [_fraction(p) for p in seen],
        }
        for row, seen in zip(fitted.history.rows, fitted.activity, strict=True)
    ]


def modes_part(
    model: GatedModel | SkippingModel,
    chosen: GateRecords,
    split: Split,
    batch_size: int,
    device: torch.device,
) -> dict[str, Any]:
    """Accuracy and MACs of every way to decide, and of other thresholds: a report's `modes` and `sweep`."""
    policy = model.policy

    def seen(other: Policy) -> GateRecords:
        model.policy = other
        return observe_gates(model, split, batch_size=batch_size, device=device)

    modes = [threshold_mode(chosen, policy.tau)]
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
    return {"modes": modes, "sweep": [threshold_mode(item, tau) for tau, item in sweep]}


def threshold_mode(found: GateRecords, tau: float) -> dict[str, Any]:
    """What deciding by the threshold `tau` gave."""
    return _mode("threshold", [found.accuracy], [found.kept], tau=tau)


def _runs_by_gates(model: GatedModel, found: GateRecords) -> dict[str, float]:
    """Name of a node -> share of the samples for which the branch that it is in runs."""
    runs: dict[str, float] = {}
    for site, share in zip(model.sites, found.site_open, strict=True):
        if site.position == "layer" and site.block is not None:
            branch = nodes_between(model.traced.node(site.block.source), model.traced.node(site.block.branch))
            runs |= {node.name: _fraction(share) for node in branch if node.name not in model.whole}
    return runs


def _kept_by_gates(model: GatedModel, found: GateRecords) -> dict[str, float]:
    """Name of a node -> part of its MACs that is left where each gate is as open as it is on average."""
    cost = model.gate_cost
    now, whole = (cost.per_node(gates).tolist() for gates in (found.open, torch.ones_like(found.open)))
    return {name: part / macs for name, part, macs in zip(cost.nodes, now, whole, strict=True)}


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
