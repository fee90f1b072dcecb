"""`adaptify retrofit`: put gates into a pretrained network and train them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptify.cli.options import (
    Arch,
    ArchKwargs,
    AutoBatch,
    BatchSize,
    Confidence,
    Data,
    Device,
    DryRun,
    Force,
    Holdout,
    InputSize,
    Json,
    MaxDrop,
    MaxMacs,
    Mean,
    Method,
    Output,
    Overrides,
    Quiet,
    Recipe,
    RecipeCheckpoint,
    RecipeSeed,
    Resume,
    Rule,
    Sites,
    SkipCorrupt,
    Std,
    Thresholds,
    TrustPickle,
    ValSplit,
    Verbose,
    Workers,
)

if TYPE_CHECKING:
    from adaptify.cli.console import Console
    from adaptify.pipeline.unfinished import Unfinished
    from adaptify.recipe import Recipe as Settings
    from adaptify.stages import Stages


def retrofit(
    checkpoint: RecipeCheckpoint = None,
    overrides: Overrides = None,
    method: Method = None,
    recipe: Recipe = None,
    data: Data = None,
    arch: Arch = None,
    arch_kwargs: ArchKwargs = None,
    trust_pickle: TrustPickle = False,
    sites: Sites = None,
    max_drop: MaxDrop = None,
    confidence: Confidence = None,
    max_macs: MaxMacs = None,
    rule: Rule = None,
    thresholds: Thresholds = None,
    holdout: Holdout = None,
    val_split: ValSplit = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    batch_size: BatchSize = None,
    auto_batch: AutoBatch = False,
    workers: Workers = None,
    skip_corrupt: SkipCorrupt = False,
    device: Device = None,
    seed: RecipeSeed = None,
    output: Output = None,
    force: Force = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Put gates into a pretrained network and train them.

    Writes a run folder: the network (model.safetensors), the report, the recipe that makes it again.
    Unless something else is asked for, at most 0.5 points of accuracy are given away.

    \b
    Examples:
      adaptify retrofit model.pth --data images --max-drop 0.5
      adaptify retrofit model.pth --data images --sites 'layer?' --budget 0.6
      adaptify retrofit model.pth --data images --dry-run
      adaptify retrofit model.pth -r dgate/digits_resnet_digits --data images
      adaptify retrofit -r runs/resnet56-dgate-001/recipe.yaml train.epochs=20
    """
    from adaptify.cli import values
    from adaptify.cli.console import Console
    from adaptify.settings import parse_overrides

    console = Console(json=json, quiet=quiet, verbose=verbose)
    first, words = values.file_and_words(checkpoint, overrides or [])
    file = None if resume else first  # it is the run, then
    options = {
        **values.model_settings(
            checkpoint=file, arch=arch, arch_kwargs=arch_kwargs, trust_pickle=trust_pickle
        ),
        **values.data_settings(
            data=data,
            holdout=holdout,
            val_split=val_split,
            input_size=input_size,
            mean=mean,
            std=std,
            workers=workers,
            skip_corrupt=skip_corrupt,
        ),
        **values.given(
            {
                "gates.sites": values.names(sites, "--sites"),
                "run.batch_size": batch_size,
                "run.device": device,
                "run.seed": seed,
            }
        ),
    }
    request = values.request_of(
        max_drop=max_drop, budget=max_macs, by_hand=thresholds, confidence=confidence, rule=rule
    )
    settings = parse_overrides(words)
    if resume:
        from adaptify.cli.resuming import find, find_staged, refuse

        refuse({"--recipe": recipe, "--output": output, "--force": force, "--dry-run": dry_run})
        staged = find_staged(first)
        if staged is not None:
            asked = {**options, **request, **settings, **values.given({"method": method})}
            refuse({key: key != "model.trust_pickle" for key in asked})
            _work_in_stages(_stopped(staged, options), None, False, console)
            return
        unfinished = find("retrofit", first)
        options |= _target(request)
        unfinished.check_settings(options | values.given({"method": method}), settings)
        values.check_consent(unfinished.recipe.model, {**options, **settings})
        _work(unfinished.recipe, None, unfinished.beginning.force, auto_batch, console, unfinished)
        return
    _check_complete({**options, **settings}, recipe)

    # Not before the arguments are known to be right: what comes with these takes seconds to import.
    from adaptify.recipe import resolve
    from adaptify.recipe_library import find_recipe

    found = find_recipe(recipe) if recipe is not None else None
    if found is not None:
        from adaptify.stages import read_stages

        asked = options | _target(request) | values.given({"method": method})
        stages = read_stages(found, asked, settings)
        if stages is not None:
            _check_consent(stages, {**options, **settings})
            _work_in_stages(stages, output, force, console, dry_run=dry_run)
            return
    resolved = resolve(method, file=found, options=options | _target(request), overrides=settings)
    values.check_consent(resolved.model, {**options, **settings})
    if dry_run:
        _show_plan(resolved, console)
    else:
        _work(resolved, output, force, auto_batch, console, None)


def _target(request: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a target that was given: it takes the place of the recipe's as a whole."""
    from adaptify.recipe import CalibrateSection

    return CalibrateSection.settings(request) if request else {}


def _check_complete(settings: Mapping[str, Any], recipe: Path | None) -> None:
    from adaptify.errors import UsageError

    if recipe is not None:
        return  # what is missing may stand there
    if "model.checkpoint" not in settings:
        raise UsageError("no checkpoint to retrofit", "Name one: adaptify retrofit CKPT --data FOLDER.")
    if "data.source" not in settings:
        raise UsageError(
            "no data to train the gates on",
            "Say which images: --data FOLDER, cifar10:FOLDER, digits, or fake:N for a trial.",
        )


def _check_consent(stages: Stages, said: Mapping[str, Any]) -> None:
    from adaptify.cli import values

    for stage in stages.resolved():
        if stage.recipe is not None:
            values.check_consent(stage.recipe.model, said)


def _stopped(path: Path, said: Mapping[str, Any]) -> Path:
    """A run of several stages that may go on: what it runs is agreed to."""
    from adaptify.pipeline.staged import read_stopped

    _check_consent(read_stopped(path), said)
    return path


def _show_plan(recipe: Settings, console: Console) -> None:
    from adaptify.cli.tables import exits_planned, gates_planned
    from adaptify.pipeline.prepare import open_recipe_data
    from adaptify.pipeline.retrofit import exits_rows, gates_rows, preview
    from adaptify.recipe import dump_recipe
    from adaptify.runtime.adaptive import AdaptiveModel
    from adaptify.text import quantity, whole

    plan = preview(recipe)
    network, model = plan.network, plan.model
    # No image is decoded: that is part of the work.
    data = open_recipe_data(recipe, network.architecture.input, model.num_classes, parts=())
    if isinstance(model, AdaptiveModel):
        rows = exits_rows(model)
        table = exits_planned(rows, network.cost.total, model.exit_macs()[-1])
    else:
        rows = gates_rows(model)
        table = gates_planned(rows, network.cost.total)
    for note in (*network.notes, *data.notes):
        console.note(note)
    console.data(
        {
            "recipe": recipe.model_dump(mode="json"),
            "architecture": network.architecture.to_json(),
            "macs": network.cost.total,
            "sites": rows,
            "data": data.describe(),
        }
    )
    parts = ((data.train, "to train gates on"), (data.holdout, "held out"), (data.test, "for testing"))
    console.show(
        dump_recipe(recipe).rstrip(),
        "",
        f"{network.architecture.name}, {quantity(network.cost.total)} MACs",
        f"{data.name}: {', '.join(f'{whole(len(split))} images {use}' for split, use in parts)}",
        "",
        table,
    )
    console.say("dry run: nothing was trained or written")


def _work(
    recipe: Settings,
    output: Path | None,
    force: bool,
    auto_batch: bool,
    console: Console,
    unfinished: Unfinished | None,
) -> None:
    from adaptify.pipeline import folder
    from adaptify.pipeline.retrofit import retrofit as work
    from adaptify.reports.tables import exits_table, gating_table, headline_table
    from adaptify.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    done = work(
        recipe, output=output, force=force, resume=unfinished, auto_batch=auto_batch, progress=console
    )
    console.data({**done.report.to_json(), "run": str(done.folder)})
    report = done.report
    table = gating_table(report, report.gating) if report.gating is not None else exits_table(report)
    console.show("", table, "", headline_table(report))
    following = "calibrate {} --max-drop 1.0"
    if report.gating is not None:
        following = "evaluate {}" if report.gating.data_dependent else "prune {} --target 0.5"
    console.say(
        f"\nrun: {done.folder}\n"
        f"page: {done.folder / folder.PAGE}\n"
        "next:\n"
        f"  adaptify report {done.folder}\n"
        f"  adaptify {following.format(done.folder)}"
    )


def _work_in_stages(
    what: Stages | Path, output: Path | None, force: bool, console: Console, *, dry_run: bool = False
) -> None:
    from adaptify.errors import UsageError
    from adaptify.parallel import launch
    from adaptify.pipeline import folder
    from adaptify.pipeline.staged import go_on, run_stages
    from adaptify.reports.tables import headline_table, stages_table
    from adaptify.runtime.allocator import keep_freed_memory

    if dry_run and not isinstance(what, Path):
        from adaptify.recipe import dump_recipe

        recipes = [stage.recipe for stage in what.resolved() if stage.recipe is not None]
        console.data([recipe.model_dump(mode="json") for recipe in recipes])
        console.show(*(dump_recipe(recipe) for recipe in recipes))
        console.say("dry run: what later stages work on is not known yet; nothing was trained or written")
        return
    if launch.count() > 1:
        raise UsageError(
            "several processes cannot share a recipe of several stages",
            "Launch each stage as a command of its own, or run the recipe without a launcher.",
        )
    keep_freed_memory()
    if isinstance(what, Path):
        done = go_on(what, progress=console)
    else:
        done = run_stages(what, output=output, force=force, progress=console)
    console.data({**done.report.to_json(), "run": str(done.folder)})
    console.show("", headline_table(done.report), "", stages_table(done.report.stages))
    console.say(
        f"\nrun: {done.folder}\n"
        f"page: {done.folder / folder.PAGE}\n"
        "next:\n"
        f"  adaptify report {done.folder}\n"
        f"  adaptify evaluate {done.folder}"
    )
