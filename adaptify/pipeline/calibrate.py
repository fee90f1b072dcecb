"""`calibrate`: another operating point for a finished run, without training or running the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptify import artifact
from adaptify.assembly import Adapted
from adaptify.data import Data, Split
from adaptify.errors import AdaptifyError, UsageError
from adaptify.models.registry import Architecture
from adaptify.pipeline import folder
from adaptify.pipeline.calibration import calibrate_model, check_promise, doubts
from adaptify.pipeline.gate_calibrate import calibrate_gates
from adaptify.pipeline.prepare import open_recipe_data
from adaptify.pipeline.reporting import build_report
from adaptify.pipeline.run_files import write_run_report
from adaptify.pipeline.stage_rows import recalibrated
from adaptify.progress import SILENT, Progress
from adaptify.recipe import CalibrateSection, Recipe, resolve, write_recipe
from adaptify.reports.schema import Report, read_report
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.gated import GatedModel
from adaptify.training.evaluate import replay
from adaptify.training.records import load_records


@dataclass(frozen=True)
class Calibrated:
    """A run with its new report and the one it had before."""

    folder: Path
    before: Report
    report: Report


def calibrate(
    run: Path,
    request: Mapping[str, Any],
    *,
    dry_run: bool = False,
    trust_code: bool = False,
    data: Data | None = None,
    progress: Progress = SILENT,
) -> Calibrated:
    """Choose the thresholds of a finished run again, from the scores its exits gave when they were trained.

    Gates that look at the sample have one threshold, which is chosen among those that were tried then; the
    network runs over the test images for the report.

    Args:
        run: The run folder.
        request: What to choose by: keys and values of the recipe's section `calibrate`.
        dry_run: Report what would come of it, and write nothing.
        trust_code: Whether the network may be built by code of the user.
        data: The images of the run, where they are open already.
        progress: Told what could not be done.

    Raises:
        TargetError: Nothing on the frontier fits; the run stays as it was.
        UsageError: The folder is no finished run.
    """
    model = artifact.load(run / folder.MODEL, trust_code=trust_code)
    before = read_report(run / folder.REPORT)
    if isinstance(model, GatedModel):
        recipe = resolve(None, file=run / folder.RECIPE)
        report = calibrate_gates(model, before, recipe, request, data, progress)
        return _finished(run, model, recipe, before, report, dry_run)
    if not model.exits or before.data is None:
        raise UsageError(
            f"{run} has no exits to calibrate", "Retrofit the network with a method that has exits."
        )
    records = load_records(run / folder.RECORDS)
    recipe = resolve(
        None,
        file=run / folder.RECIPE,
        options=CalibrateSection.settings(request),
    )
    check_promise(recipe, len(records["holdout"].labels))
    doubtful = calibrate_model(
        model,
        records["holdout"],
        recipe.calibrate.request(),
        score=model.policy.score,
        temperatures=model.policy.temperatures,
        seed=recipe.run.seed,
        images=(model.plan.calibration or {}).get("images") if model.plan else None,
    )
    for note in doubtful:
        progress.note(note)
    # The time of the last real run was another operating point's.
    timing = {key: value for key, value in before.timing.items() if key != "evaluation_s"}
    report = build_report(
        model,
        before.data.model_dump(),
        _test_images(recipe, model, progress) if data is None else data.test,
        replay(records["test"], model),
        records["test"],
        timing=timing,
        notes=[*(note for note in before.notes if note not in _doubts_of(before)), *doubtful],
        before=before if before.training is not None else None,
        training=None if before.training is None else before.training.model_dump(),
    )
    # The time after was another operating point's, too: `adaptify report --time` takes it again.
    came = report.before.model_copy(update={"milliseconds": before.before.milliseconds})
    return _finished(run, model, recipe, before, report.model_copy(update={"before": came}), dry_run)


def _finished(
    run: Path, model: Adapted, recipe: Recipe, before: Report, report: Report, dry_run: bool
) -> Calibrated:
    """Bring the files of a run up to date, unless they are only to be looked at."""
    report = recalibrated(before, report)
    if not dry_run:
        with folder.changed_run(run) as work:
            artifact.save(model, work / folder.MODEL)
            write_recipe(recipe, work / folder.RECIPE)
            report = write_run_report(report, recipe, work)
    return Calibrated(run, before, report)


def _doubts_of(before: Report) -> tuple[str, ...]:
    """What was to be known about the choice that a new one takes the place of."""
    choice = before.calibration
    return () if choice is None else doubts(choice.samples, choice.request)


def _test_images(recipe: Recipe, model: AdaptiveModel, progress: Progress) -> Split | None:
    """The test images, for the report's examples; the report can do without."""
    if model.plan is None:
        return None
    try:
        spec = Architecture.from_json(model.plan.architecture).input
        return open_recipe_data(recipe, spec, model.num_classes, parts=["test"]).test
    except AdaptifyError as error:
        progress.note(f"the report shows no example images: {error.message}")
        return None
