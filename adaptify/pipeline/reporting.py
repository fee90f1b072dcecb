"""From what was measured to the report."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from adaptify.assembly import Adapted
from adaptify.data import Split
from adaptify.environment import describe_environment
from adaptify.errors import UsageError
from adaptify.pipeline.exit_curves import anytime_part, budgeted_part
from adaptify.pipeline.exit_examples import exit_examples
from adaptify.pipeline.outcome import effects_part, size_of
from adaptify.plan import Plan
from adaptify.reports.schema import Report
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.view import NetworkView
from adaptify.training.evaluate import Evaluation
from adaptify.training.history import History
from adaptify.training.records import ExitRecords
from adaptify.version import VERSION


def build_report(
    model: AdaptiveModel,
    data: Mapping[str, Any],
    images: Split | None,
    evaluation: Evaluation,
    records: ExitRecords,
    *,
    timing: Mapping[str, float | None],
    notes: Sequence[str] = (),
    before: Tensor | Report | None = None,
    training: Mapping[str, Any] | None = None,
) -> Report:
    """Put the report of an adaptive network together.

    Args:
        model: The network with its policy, and its plan with frontier and calibration.
        data: The data set, as `Data.describe` puts it.
        images: Its test part, for example images; None leaves them out.
        evaluation: What became of each test sample under the policy.
        records: What every exit says about every test sample.
        timing: Seconds and bytes worth reporting.
        notes: What the user should know.
        before: What the network as it came predicts, (N,) int64, or an earlier report that knows how right
            it was; None: it is the same as without leaving early.
        training: The `training` part, where the network was trained with its exits.
    """
    macs = evaluation.macs(model.exit_macs(model.policy)).double()
    base = model.cost.total
    classes: list[str] = data["classes"]
    plan = _plan_of(model)
    names = [*(item.site.name for item in model.exits), "output"]
    value: dict[str, Any] = {
        **provenance(model),
        "data": dict(data),
        "before": {**_before(before, records), "macs": base, **size_of(model.backbone().root)},
        "training": training,
        "after": {
            "accuracy": evaluation.accuracy,
            "macs": float(macs.mean()),
            "kept": float(macs.mean()) / base,
            **size_of(model),
        },
        "calibration": plan.calibration,
        "exits": _exits(model, names, evaluation, records),
        "macs_per_sample": {
            "mean": float(macs.mean()),
            "median": float(macs.median()),
            "p95": float(macs.quantile(0.95, interpolation="higher")),
        },
        "frontier": plan.frontier["points"] if plan.frontier else [],
        "anytime": anytime_part(model, records),
        "budgeted": budgeted_part(model, records),
        "layers": layer_rows(model, _runs_by_exits(model, evaluation.exit_index)),
        "classes_per_exit": [
            torch.bincount(evaluation.labels[evaluation.exit_index == index], minlength=len(classes)).tolist()
            for index in range(len(names))
        ],
        "class_effects": _effects(before, records, evaluation, classes),
        "examples": exit_examples(images, classes, names, evaluation) if images is not None else {},
        "timing": dict(timing),
        "notes": list(notes),
    }
    return Report.model_validate(value)


def provenance(model: NetworkView) -> dict[str, Any]:
    """The parts of a report that say what was made of which file, when, where and how.

    Raises:
        UsageError: The network has no plan.
    """
    plan = _plan_of(model)
    gates = sum(parameter.numel() for parameter in model.gate_parameters)
    return {
        "adaptify": VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        # In a notebook or a program of the user, the arguments are not ours.
        "command": ["adaptify", *sys.argv[1:]] if Path(sys.argv[0]).stem == "adaptify" else [],
        "model": {
            "architecture": plan.architecture["name"],
            "kwargs": plan.architecture["kwargs"],
            "checkpoint": plan.source.checkpoint if plan.source else "",
            "sha256": plan.source.sha256 if plan.source else "",
            "parameters": sum(parameter.numel() for parameter in model.parameters()) - gates,
            "gate_parameters": gates,
            "input": list(model.traced.input_shape),
        },
        "method": plan.method,
        "environment": describe_environment(),
    }


def _before(before: Tensor | Report | None, records: ExitRecords) -> dict[str, Any]:
    if isinstance(before, Report):
        return {"accuracy": before.before.accuracy}
    predictions = records.predictions[-1] if before is None else before
    return {"accuracy": float((predictions == records.labels).double().mean())}


def _effects(
    before: Tensor | Report | None, records: ExitRecords, evaluation: Evaluation, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """What became of each class; nothing where an earlier report does not know how right the network was."""
    was: Tensor | list[float] = records.predictions[-1]
    if isinstance(before, Report):
        if not before.class_effects:
            return []
        was = [row.before for row in before.class_effects]
    elif before is not None:
        was = before
    return effects_part(classes, evaluation.labels, was, evaluation.predictions)


def _plan_of(model: NetworkView) -> Plan:
    if model.plan is None:
        raise UsageError("a network without a plan cannot be reported on", "Load it from its artifact.")
    return model.plan


def _exits(
    model: AdaptiveModel, names: Sequence[str], evaluation: Evaluation, records: ExitRecords
) -> list[dict[str, Any]]:
    macs = model.exit_macs(model.policy)
    right = evaluation.predictions == evaluation.labels
    rows = []
    for index, name in enumerate(names):
        left = evaluation.exit_index == index
        rows.append(
            {
                "name": name,
                "threshold": model.policy.thresholds[index] if index < len(model.exits) else None,
                "share": float(left.double().mean()),
                "macs": macs[index],
                "share_macs": macs[index] / model.cost.total,
                "accuracy_all": float(records.correct[index].double().mean()),
                "accuracy_left": float(right[left].double().mean()) if left.any() else None,
                "samples": int(left.sum()),
            }
        )
    return rows


def training_part(options: Mapping[str, Any], history: History) -> dict[str, Any]:
    """The `training` part of a report."""
    chosen = history.chosen
    return {
        "options": dict(options),
        "chosen": -1 if chosen is None else chosen,
        "epochs": [
            {
                "epoch": row.epoch,
                "lr": row.lr,
                "loss": row.loss,
                "terms": dict(row.terms),
                "train_accuracy": row.train_accuracy,
                "holdout_accuracy": row.validation.accuracy,
                "kept": row.validation.kept,
                "images_per_second": row.images_per_second,
                "figures": dict(row.extra),
            }
            for row in history.rows
        ],
    }


def layer_rows(
    model: Adapted, runs: Mapping[str, float] | None = None, kept: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Every node with MACs or parameters, and the mean share of samples that run it.

    Args:
        model: The network.
        runs: Name of a node -> that share, for nodes that not all samples run.
        kept: Name of a node -> the part of its MACs that is left, for nodes of which that is another share.
    """
    runs, kept = runs or {}, kept or {}
    rows = []
    for node in model.traced.graph.nodes:
        parameters = _parameters(model.traced.root, node)
        macs = model.cost.macs.get(node.name, 0)
        if (macs or parameters) and node.meta["shape"] is not None:
            rows.append(
                {
                    "name": node.meta["name"],
                    "type": _kind(model.traced.root, node),
                    "shape": list(node.meta["shape"][1:]),
                    "parameters": parameters,
                    "macs": macs,
                    "executed": runs.get(node.name, 1.0),
                    "kept": kept.get(node.name),
                }
            )
    return rows


def _runs_by_exits(model: AdaptiveModel, exit_index: Tensor) -> dict[str, float]:
    """Name of a node -> share of the samples that have not left before it."""
    return {
        name: float((exit_index >= passed).double().mean()) for name, passed in model.exits_passed().items()
    }


def _parameters(root: nn.Module, node: fx.Node) -> int:
    if node.op == "call_module":
        return sum(parameter.numel() for parameter in root.get_submodule(str(node.target)).parameters())
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        value = getattr(root.get_submodule(owner), name)
        return value.numel() if isinstance(value, nn.Parameter) else 0
    return 0


def _kind(root: nn.Module, node: fx.Node) -> str:
    if node.op == "call_module":
        return type(root.get_submodule(str(node.target))).__name__
    if node.op == "get_attr":
        return "Parameter"
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "operation")
