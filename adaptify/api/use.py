"""Working with networks that are made: `load`, `calibrate`, `evaluate`, `export`, `report`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, overload

from torch import nn

from adaptify import artifact
from adaptify.api.inputs import AnyData, AnyModel, Images, open_test, request_of
from adaptify.api.page import Page
from adaptify.api.run import Run
from adaptify.assembly import Adapted
from adaptify.data.identity import fingerprint
from adaptify.errors import UsageError
from adaptify.exports.write import SUFFIXES, Format, Options
from adaptify.freeze import without_fixed_gates
from adaptify.pipeline import calibrate as calibrating
from adaptify.pipeline import folder
from adaptify.pipeline.calibration import calibrate_model
from adaptify.pipeline.evaluate import Result, evaluate_network, open_target
from adaptify.pipeline.export import Exported, export_network
from adaptify.pipeline.given import open_module
from adaptify.progress import SILENT, Progress
from adaptify.recipe import CalibrateSection, DataSection, ModelSection
from adaptify.reports.schema import read_report
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.budget import MOST, Budget
from adaptify.runtime.budgeted import frontier_policy
from adaptify.runtime.device import pick_device
from adaptify.runtime.gate_policy import Policy
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.optimize import optimize
from adaptify.runtime.skipping.model import SkippingModel
from adaptify.training.observe import observe_exits

Calibratable = TypeVar("Calibratable", Run, AdaptiveModel, GatedModel)


@overload
def load(
    path: str | os.PathLike[str],
    *,
    for_inference: Literal[False] = ...,
    device: str = ...,
    trust_code: bool = ...,
) -> Adapted: ...
@overload
def load(
    path: str | os.PathLike[str], *, for_inference: Literal[True], device: str = ..., trust_code: bool = ...
) -> AdaptiveModel | SkippingModel: ...
def load(
    path: str | os.PathLike[str],
    *,
    for_inference: bool = False,
    device: str = "cpu",
    trust_code: bool = False,
) -> Adapted | SkippingModel:
    """Make the network of an artifact again: an `nn.Module` in evaluation mode.

    Args:
        path: The `.safetensors` file, or a run folder.
        for_inference: Whether it is only to be run: then it comes in the fastest form known on this machine
            (see `optimize`), and cannot be trained or saved. Otherwise it has the parameter names of the
            checkpoint.
        device: auto, cpu, cuda or cuda:N.
        trust_code: Whether a network built by your own code may be loaded, which imports that code.

    Raises:
        UsageError: There is no such file or device.
        ModelError: The file is damaged, is no artifact, or needs code that is not trusted.
    """
    where = pick_device(device)
    model = artifact.load(path, trust_code=trust_code)
    return optimize(without_fixed_gates(model), where) if for_inference else model.to(where)


def calibrate(
    model: Calibratable,
    holdout: AnyData | None = None,
    *,
    max_drop: float | None = None,
    budget: float | None = None,
    confidence: float | None = None,
    thresholds: Sequence[float | None] | None = None,
    batch_size: int = 256,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Calibratable:
    """Choose when a network decides: for an accuracy or for a budget; without either, a drop of 0.5 points.

    Args:
        model: A run, or a network with exits or gates.
        holdout: Images to choose on, for a network with exits; nothing random in them. Not for a run, which
            knows what its exits said, nor for gates, which have thresholds that were tried in training.
        max_drop: Points of top-1 accuracy that may be lost.
        budget: Fraction of the MACs that may be kept; or, from 1,000 on, MACs for an image.
        confidence: Probability with which `max_drop` holds for new images.
        thresholds: One for each exit, by hand; None in it: an exit that is never taken.
        batch_size: Images per batch.
        device: auto, cpu, cuda or cuda:N.
        progress: Told how far it is.

    Returns:
        What was given, with another policy; of a run, the report is of the new policy.

    Raises:
        TargetError: Nothing fits what was asked for; the model stays as it was.
        UsageError: There is nothing to choose, or nothing to choose on.
    """
    request = request_of(max_drop, budget, confidence, thresholds)
    if isinstance(model, Run):
        if holdout is not None:
            raise UsageError(
                "a run chooses on the images that were held out when it was made",
                "Leave holdout out, or calibrate run.model on other images.",
            )
        done = calibrating.calibrate(
            model.folder, request, trust_code=True, data=model.data, progress=progress
        )
        model.renew(done.report)
        return model
    if isinstance(model, GatedModel):
        _choose_threshold(model, request, holdout)
        return model
    if not model.exits:
        raise UsageError("the network has no exits to calibrate", "Put some in: adaptify.retrofit(...).")
    if holdout is None:
        raise UsageError(
            "no images to choose on", "Give some that were not trained on: calibrate(model, LOADER)."
        )
    where = pick_device(device)
    split = open_test(holdout, model).test
    seen = observe_exits(
        optimize(model, where), split, batch_size=batch_size, device=where, progress=progress
    )
    score, temperatures = model.policy.score, model.policy.temperatures
    doubts = calibrate_model(
        model,
        seen.records(score, temperatures),
        CalibrateSection.model_validate(request).request(),
        score=score,
        temperatures=temperatures,
        images=fingerprint(split),
    )
    for doubt in doubts:
        progress.note(doubt)
    return model


def evaluate(
    model: AnyModel,
    test: AnyData | None = None,
    *,
    budgets: Sequence[float] = (),
    input_shape: tuple[int, int, int] | None = None,
    batch_size: int = 256,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Result:
    """Run a network over images, really skipping.

    Args:
        model: A network, a run, a plain `nn.Module`, a run folder or an artifact.
        test: Images with labels; None: the test images of a run that was given loaders.
        budgets: What else to run it within, beside its own policy: fractions of the MACs, or MACs.
        input_shape: (C, H, W) for a plain module; None: that of the first image.
        batch_size: Images per batch.
        device: auto, cpu, cuda or cuda:N.
        progress: Told how far it is.

    Returns:
        Accuracy, mean MACs, seconds; what left at each exit; and the same within each budget.

    Raises:
        UsageError: There are no images, or they do not fit.
        TargetError: The network can keep to none of the budgets.
    """
    images = test if test is not None else None
    data = model.data if isinstance(model, Run) and images is None else None
    if images is None and data is None:
        raise UsageError("no images to evaluate on", "Give some: evaluate(model, LOADER).")
    network, name = _network(model, images, input_shape)
    return evaluate_network(
        network,
        data or open_test(cast(AnyData, images), network),
        name=name,
        budgets=[Budget.of(budget) for budget in budgets],
        batch_size=batch_size,
        device=device,
        progress=progress,
    )


def export(
    model: AnyModel,
    output: str | os.PathLike[str],
    *,
    format: Format | None = None,
    images: AnyData | None = None,
    control_flow: str = "compact",
    batch_size: int | None = None,
    opset: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Exported:
    """Write a network as a file that runs without adaptify, and hold the file against the network.

    Args:
        model: A network, a run, a plain `nn.Module`, a run folder or an artifact.
        output: The file.
        format: `onnx`, `pt2`, `safetensors` or `python`; None: as the name of the file ends.
        images: Images to compare on; None: the test images of a run that was given loaders, or random values.
        control_flow: `compact`, or what else `adaptify export --control-flow` takes.
        batch_size: The only batch size that the file is to take; None: any.
        opset: Version of the operations of ONNX.
        input_shape: (C, H, W) for a plain module; None: that of the first image.
        force: Replace the file if it is there.
        progress: Told what happens.

    Raises:
        UsageError: The file is there already, or the format cannot hold such a network.
        TargetError: The file does not compute what the network computes, and was not kept.
    """
    path = Path(output)
    options = Options(format or _format_of(path), cast(Any, control_flow), batch_size, opset)
    network, _ = _network(model, images, input_shape)
    data = model.data if isinstance(model, Run) else None
    opened = open_test(images, network) if images is not None else data
    return export_network(network, path, options, data=opened, force=force, progress=progress)


def report(*runs: Run | str | Path) -> Page:
    """Return the report of a run, or of several side by side: a page in a notebook, tables in print.

    Args:
        runs: Runs, or run folders.

    Raises:
        UsageError: There is no run, or a folder holds no report.
    """
    if not runs:
        raise UsageError("no run to report on", "Give one: adaptify.report(run).")
    found = [
        (run.report.method.name, run.report)
        if isinstance(run, Run)
        else (Path(run).name, read_report(Path(run) / folder.REPORT))
        for run in runs
    ]
    return Page.of(found)


def _network(
    model: AnyModel, images: AnyData | None, input_shape: tuple[int, int, int] | None
) -> tuple[Adapted, str]:
    """The network that was given, and what to call it."""
    if isinstance(model, Run):
        return model.model, model.report.method.name
    if isinstance(model, (AdaptiveModel, GatedModel)):
        return model.eval(), type(model.traced.root).__name__
    if isinstance(model, nn.Module):
        loader = images if not isinstance(images, str) else None
        spec = Images(test=loader, input_shape=input_shape).input(None, DataSection(source=""))
        return AdaptiveModel(open_module(model, spec).traced).eval(), type(model).__name__
    found, _ = open_target(Path(model), ModelSection(checkpoint=str(model)), DataSection(source=""), True)
    return found, str(model)


def _choose_threshold(model: GatedModel, request: Mapping[str, Any], holdout: AnyData | None) -> None:
    """Set the policy of gates to one that was tried when they were trained."""
    frontier = model.frontier
    if frontier is None or holdout is not None or request.keys() - {"max_drop", "max_macs"}:
        raise UsageError(
            "gates have one threshold, which is chosen among those that were tried when they were trained",
            "Give max_drop or budget, and no images, for gates that look at the image.",
        )
    asked = dict(request) or {"max_drop": 0.5}
    fraction = None
    if "max_macs" in asked:
        fraction = min(Budget.of(asked["max_macs"]).fraction(frontier.base_macs), MOST)
    point = frontier.choose(max_drop=asked.get("max_drop"), max_macs=fraction)
    model.policy = cast(Policy, frontier_policy(frontier, point))


def _format_of(path: Path) -> Format:
    for name, suffix in SUFFIXES.items():
        if path.suffix == suffix:
            return name
    raise UsageError(
        f"'{path.name}' does not say which format it is to have",
        f"Let it end in {', '.join(SUFFIXES.values())}; or give format=.",
    )
