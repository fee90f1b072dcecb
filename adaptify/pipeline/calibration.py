"""Choosing the policy of a network with exits from what its exits said about held-out samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.policy import ThresholdPolicy
from adaptify.training.calibrate import Frontier, OperatingPoint, evaluate_thresholds, search_thresholds
from adaptify.training.records import ExitRecords

# A request that is worth fewer samples than this is decided by chance.
_FEWEST = 10


def calibrate_model(
    model: AdaptiveModel,
    holdout: ExitRecords,
    request: Mapping[str, Any],
    *,
    score: str,
    temperatures: tuple[float, ...] | None = None,
) -> tuple[str, ...]:
    """Set `model.policy` to what `request` asks for, and put frontier and choice into `model.plan`.

    Args:
        model: The network with exits.
        holdout: What every exit says about the samples to choose on; the network is not run.
        request: `max_drop` (points of top-1) and/or `max_macs` (fraction kept), or `thresholds`.
        score: Which score of an exit the records hold.
        temperatures: What the logits of each exit were divided by before they were scored.

    Returns:
        What the user should know about the choice.

    Raises:
        TargetError: Nothing on the frontier fits the request.
        UsageError: The thresholds do not fit the exits.
    """
    macs = model.exit_macs(ThresholdPolicy((0.0,) * len(model.exits), score))
    correct = holdout.correct.numpy()
    scores = holdout.scores.numpy()
    frontier = search_thresholds(scores, correct, macs, model.cost.total)
    if "thresholds" in request:
        wanted = [math.inf if value is None else float(value) for value in request["thresholds"]]
        point = evaluate_thresholds(scores, correct, macs, wanted)
    else:
        point = frontier.choose(max_drop=request.get("max_drop"), max_macs=request.get("max_macs"))
    model.policy = ThresholdPolicy(point.thresholds, score, temperatures)
    if model.plan is not None:
        found = {
            "policy": model.policy.to_json(),
            "frontier": {**frontier.to_json(), "policy": model.policy.to_json()},
            "calibration": _calibration(frontier, point, len(holdout.labels), request),
        }
        model.plan = model.plan.model_copy(update=found)
    return _doubts(len(holdout.labels), request)


def _doubts(samples: int, request: Mapping[str, Any]) -> tuple[str, ...]:
    wrong = samples * float(request.get("max_drop") or 0) / 100
    if not 0 < wrong < _FEWEST:
        return ()
    return (
        f"{request['max_drop']:g} points of {samples} held-out samples are {wrong:.1f} samples: accuracy on "
        "other data may drop by more; hold out more with --holdout",
    )


def _calibration(
    frontier: Frontier, point: OperatingPoint, samples: int, request: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "split": "holdout",
        "samples": samples,
        "request": dict(request),
        "accuracy": point.accuracy,
        "base_accuracy": frontier.base_accuracy,
        "macs": point.macs,
    }
