"""Another threshold for the gates of a finished run, from the frontier that its artifact carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from adaptify.data import Data
from adaptify.errors import UsageError
from adaptify.models.registry import Architecture
from adaptify.pipeline.gate_reporting import gating_part, outcome_part, threshold_mode
from adaptify.pipeline.outcome import effects_part
from adaptify.pipeline.prepare import open_recipe_data
from adaptify.pipeline.reporting import provenance
from adaptify.progress import SILENT, Progress
from adaptify.recipe import Recipe
from adaptify.reports.schema import Report
from adaptify.runtime.budget import MOST, Budget
from adaptify.runtime.budgeted import frontier_policy
from adaptify.runtime.device import pick_device
from adaptify.runtime.gate_policy import Policy
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.optimize import optimize
from adaptify.training.gate_records import GateRecords, observe_gates

_ANSWERED = {"max_drop", "max_macs"}


def calibrate_gates(
    model: GatedModel,
    before: Report,
    recipe: Recipe,
    request: Mapping[str, Any],
    data: Data | None = None,
    progress: Progress = SILENT,
) -> Report:
    """Set `model.policy` to what `request` asks for, and measure that on the test images.

    Args:
        model: The network of the run.
        before: The report of the run.
        recipe: The settings of the run, for its images.
        request: `max_drop` (points of top-1, from the network as it came) and/or `max_macs` (a budget).
        data: The images of the run, where they are open already.
        progress: Told how far it is.

    Raises:
        UsageError: The network carries no frontier, something else is asked for, or the images are gone.
        TargetError: Nothing on the frontier fits the request.
    """
    frontier, plan = model.frontier, model.plan
    if frontier is None or plan is None or before.gating is None or before.data is None:
        raise UsageError(
            "the run has neither exits nor gates whose threshold could be chosen: it carries no frontier",
            "`adaptify retrofit` gives one to networks with exits, or gates that look at the sample.",
        )
    if request.keys() - _ANSWERED:
        raise UsageError(
            f"gates are not chosen by {', '.join(sorted(request.keys() - _ANSWERED))}: that is about exits",
            "Give --budget or --max-drop.",
        )
    asked = dict(request)
    fraction = None
    if "max_macs" in request:
        fraction = min(Budget.of(request["max_macs"]).fraction(frontier.base_macs), MOST)
        # A report counts in parts of the network as it came, which may have lost blocks since.
        asked["max_macs"] = fraction * frontier.base_macs / before.before.macs
    point = frontier.choose(max_drop=request.get("max_drop"), max_macs=fraction)
    model.policy = cast(Policy, frontier_policy(frontier, point))
    choice = {
        "request": asked,
        "accuracy": point.accuracy,
        "base_accuracy": frontier.base_accuracy,
        "macs": point.macs,
    }
    model.plan = plan.model_copy(update={"calibration": {**(plan.calibration or {}), **choice}})
    return _measured(model, before, recipe, data, progress)


def _measured(
    model: GatedModel, before: Report, recipe: Recipe, data: Data | None, progress: Progress
) -> Report:
    """The report with what the network does under its policy, in the form in which it runs."""
    assert model.plan is not None
    assert before.gating is not None
    assert before.data is not None
    device = pick_device(recipe.run.device)
    spec = Architecture.from_json(model.plan.architecture).input
    # The training images are for the gradients of blocks.
    if data is None:
        data = open_recipe_data(recipe, spec, model.num_classes, parts=["train", "test"], progress=progress)
    found = observe_gates(
        optimize(model, device),
        data.test,
        batch_size=recipe.run.batch_size,
        device=device,
        by_class=True,
        progress=progress,
    )
    model.to(device)
    value = before.to_json()
    outcome = outcome_part(model, found, before.before.macs)
    outcome["after"] = {**value["after"], **outcome["after"], "milliseconds": None}
    gating = {
        **value["gating"],
        **gating_part(model, found, data, before.data.classes, device),
        **_modes(value["gating"], found, model.policy.tau),
    }
    was = [row.before for row in before.class_effects]
    model.cpu()
    return Report.model_validate(
        {
            **value,
            **provenance(model),
            **outcome,
            "gating": gating,
            "class_effects": effects_part(before.data.classes, found.labels, was, found.predictions)
            if was
            else [],
            "calibration": model.plan.calibration,
            "held_out": None,  # that was the threshold before; what this one gives stands in `calibration`
            "speed": None,  # it was another threshold's
            "timing": {**value["timing"], "evaluation_s": found.seconds},
        }
    )


def _modes(gating: Mapping[str, Any], found: GateRecords, tau: float) -> dict[str, Any]:
    """The ways to decide, with what the threshold `tau` gave; what others give has not changed."""
    now = threshold_mode(found, tau)
    sweep = {row["tau"]: row for row in [*gating["sweep"], now]}
    return {
        "modes": [now if row["name"] == now["name"] else row for row in gating["modes"]],
        "sweep": [sweep[key] for key in sorted(sweep)],
    }
