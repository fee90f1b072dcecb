"""Choosing the policy of a network with exits from what its exits said about held-out samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from adaptify.errors import TargetError, UsageError
from adaptify.recipe import Recipe
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.budget import MOST, Budget
from adaptify.runtime.frontier import Frontier, OperatingPoint
from adaptify.runtime.policy import ThresholdPolicy
from adaptify.training.budgeted import sweep_quotas
from adaptify.training.calibrate import Samples, evaluate_thresholds, search_thresholds
from adaptify.training.records import ExitRecords
from adaptify.training.risk import check_samples, halves, promised_point, safest_first

# A request that is worth fewer samples than this is decided by chance.
_FEWEST = 10


def calibrate_model(
    model: AdaptiveModel,
    holdout: ExitRecords,
    request: Mapping[str, Any],
    *,
    score: str,
    temperatures: tuple[float, ...] | None = None,
    seed: int = 0,
    images: str | None = None,
) -> tuple[str, ...]:
    """Set `model.policy` to what `request` asks for, and put frontier and choice into `model.plan`.

    Args:
        model: The network with exits.
        holdout: What every exit says about the samples to choose on; the network is not run.
        request: What to choose by, as `CalibrateSection.request` gives it. With a confidence, thresholds are
            chosen on one half of the samples, and the promise is tested on the other.
        score: Which score of an exit the records hold.
        temperatures: What the logits of each exit were divided by before they were scored.
        seed: Of the halves.
        images: Fingerprint of the held-out images, for provenance.

    Returns:
        What the user should know about the choice.

    Raises:
        TargetError: Nothing on the frontier fits the request, or it cannot be promised.
        UsageError: The thresholds do not fit the exits.
    """
    macs = model.exit_macs(ThresholdPolicy((0.0,) * len(model.exits), score))
    wanted = dict(request)
    if "max_macs" in wanted:
        wanted["max_macs"] = min(Budget.of(wanted["max_macs"]).fraction(model.cost.total), MOST)
    parts = [holdout]
    if "confidence" in wanted:
        rows = halves(len(holdout.labels), seed)
        parts = [holdout.take(torch.from_numpy(half)) for half in rows]
    samples, *tested = (Samples.checked(item.scores.numpy(), item.correct.numpy(), macs) for item in parts)
    count = partial(_counted, model, score)
    frontier = _counted_frontier(_frontier(samples, wanted, model.cost.total), count)
    promise = None
    if "thresholds" in wanted:
        limits = [math.inf if value is None else float(value) for value in wanted["thresholds"]]
        point = count(evaluate_thresholds(samples.scores, samples.correct, macs, limits))
    elif tested:
        points = safest_first(frontier, samples)
        found, promise = promised_point(points, tested[0], wanted["max_drop"], wanted["confidence"])
        point = count(found)
        _check_budget(point, wanted, model.cost.total)
    else:
        point = frontier.choose(max_drop=wanted.get("max_drop"), max_macs=wanted.get("max_macs"))
    model.policy = ThresholdPolicy(point.thresholds, score, temperatures)
    if model.plan is not None:
        known = {
            "policy": model.policy.to_json(),
            "frontier": {**frontier.to_json(), "policy": model.policy.to_json()},
            "calibration": {
                "split": "holdout",
                "samples": samples.count,
                "images": images,
                "request": wanted,
                "accuracy": point.accuracy,
                "base_accuracy": frontier.base_accuracy,
                "macs": point.macs,
                "promise": None if promise is None else promise.to_json(),
            },
        }
        model.plan = model.plan.model_copy(update=known)
    return () if promise is not None else doubts(samples.count, wanted)


def doubts(samples: int, request: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what the user should know about a choice on so few samples; () where they are enough."""
    wrong = samples * float(request.get("max_drop") or 0) / 100
    if not 0 < wrong < _FEWEST:
        return ()
    points = "1 point" if request["max_drop"] == 1 else f"{request['max_drop']:g} points"
    return (
        f"{points} of {samples} held-out samples are {wrong:.1f} samples: accuracy on other data may drop by "
        "more; hold out more with --holdout",
    )


def check_promise(recipe: Recipe, held: int) -> None:
    """Refuse before the work a promise that no result on `held` held-out samples could support.

    Raises:
        TargetError: It takes more samples.
        UsageError: The samples choose the epoch too: then they say nothing about new ones.
    """
    target = recipe.calibrate
    if target.confidence is None or target.max_drop is None:
        return
    if recipe.train.model_dump().get("keep") == "best":
        raise UsageError(
            "train.keep=best chooses the epoch on the images that the promise would be tested on",
            "Keep the last epoch: train.keep=last; or ask for no --confidence.",
        )
    check_samples(held - held // 2, target.max_drop, target.confidence)


def _frontier(samples: Samples, request: Mapping[str, Any], base_macs: int) -> Frontier:
    arguments = samples.scores, samples.correct, samples.macs, base_macs
    if request.get("rule") != "quota":
        return search_thresholds(*arguments)
    budget = request.get("max_macs")
    return sweep_quotas(*arguments, budget=None if budget is None else budget * base_macs)


def _counted(model: AdaptiveModel, score: str, point: OperatingPoint) -> OperatingPoint:
    """The point with MACs without the heads that its thresholds switch off; the search counts them all."""
    macs = model.exit_macs(ThresholdPolicy(point.thresholds, score))
    spent = sum(share * each for share, each in zip(point.exit_shares, macs, strict=True))
    return replace(point, macs=float(spent))


def _counted_frontier(frontier: Frontier, count: Callable[[OperatingPoint], OperatingPoint]) -> Frontier:
    """The frontier with counted points; what is now beaten by a cheaper point is left out."""
    *points, never = map(count, frontier.points)
    kept: list[OperatingPoint] = []
    for point in sorted(points, key=lambda item: (item.macs, -item.accuracy)):
        beaten = point.macs >= never.macs and point.accuracy <= never.accuracy
        if not beaten and (not kept or point.accuracy > kept[-1].accuracy):
            kept.append(point)
    return replace(frontier, points=(*kept, never))


def _check_budget(point: OperatingPoint, request: Mapping[str, Any], base_macs: int) -> None:
    kept, allowed = point.macs / base_macs, request.get("max_macs")
    if allowed is not None and kept > allowed:
        raise TargetError(
            f"a drop of at most {request['max_drop']:g} points can be promised for {kept:.1%} of the MACs, "
            f"and not for {allowed:.1%}",
            "Ask for less, or hold out more images with --holdout.",
        )
