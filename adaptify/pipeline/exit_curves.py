"""What a network with exits gives for other amounts of compute, told from the records of the test samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.frontier import OperatingPoint
from adaptify.training.records import ExitRecords


def anytime_part(model: AdaptiveModel, records: ExitRecords) -> list[dict[str, Any]]:
    """Anytime prediction: every sample is answered by the same exit, for each exit and (last) the output.

    A network that may be stopped at any time has an answer ready at each exit: the heads before it count,
    whether the policy uses them or not.

    Args:
        model: The network with S exits.
        records: What every exit says about every sample.

    Returns:
        S + 1 times `Measured` of a report, as JSON.
    """
    right = records.correct.double().mean(1).tolist()
    return [
        {"accuracy": accuracy, "macs": macs} for accuracy, macs in zip(right, model.exit_macs(), strict=True)
    ]


def budgeted_part(model: AdaptiveModel, records: ExitRecords) -> list[dict[str, Any]]:
    """Budgeted batch prediction: each policy of the plan's frontier, which was chosen on held-out samples.

    Args:
        model: The network with its plan.
        records: What every exit says about every sample; their scores are those that the policy is about.

    Returns:
        `Measured` of a report for each point of the frontier, as JSON.
    """
    frontier = model.plan.frontier if model.plan is not None else None
    samples = torch.arange(len(records.labels))
    found = []
    for value in frontier["points"] if frontier else ():
        point = OperatingPoint.from_json(value)
        policy = replace(model.policy, thresholds=point.thresholds)
        index = records.exit_index(policy)
        macs = torch.tensor(model.exit_macs(policy))[index]
        found.append(
            {
                "accuracy": float(records.correct[index, samples].double().mean()),
                "macs": float(macs.double().mean()),
            }
        )
    return found
