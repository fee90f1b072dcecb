"""`adaptify prune`: take channels or blocks out of a network for good."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaptify.cli import completion
from adaptify.cli.options import (
    Arch,
    ArchKwargs,
    AutoBatch,
    BatchSize,
    Data,
    Device,
    DryRun,
    Force,
    Holdout,
    InputSize,
    Json,
    Mean,
    Output,
    Overrides,
    PruneMethod,
    Quiet,
    Recipe,
    RecipeSeed,
    Resume,
    SkipCorrupt,
    Std,
    TrustPickle,
    ValSplit,
    Verbose,
    Workers,
)
from adaptify.cli.prune_settings import judging, resolve_settings

if TYPE_CHECKING:
    from adaptify.cli.console import Console
    from adaptify.pipeline.unfinished import Unfinished
    from adaptify.recipe import Recipe as Settings


def prune(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CKPT|RUN",
            show_default=False,
            help="Checkpoint of a pretrained network, or a run folder. Without one: the newest run in runs/.",
            autocompletion=completion.runs,
        ),
    ] = None,
    words: Overrides = None,
    target: Annotated[
        float | None,
        typer.Option(
            "--target",
            "-t",
            metavar="FRACTION",
            show_default=False,
            help="Fraction of the MACs that is KEPT, met within 1% (0.4: from 4.09 G to 1.64 G). "
            "For a run with gates, none: whatever they leave.",
        ),
    ] = None,
    method: PruneMethod = None,
    importance: Annotated[
        str | None,
        typer.Option(
            "--importance",
            metavar="NAME",
            show_default=False,
            help="Judge channels, and learn nothing: by l1 or l2 (norm of their weights; l2 unless you say), "
            "bn_scale (scale of their BatchNorm), fpgm (distance to the other filters), taylor (effect on "
            "the loss, on images of --data).",
        ),
    ] = None,
    round_to: Annotated[
        int | None,
        typer.Option(
            "--round-to",
            metavar="N",
            show_default="16",
            help="Keep channels in multiples of N where layers are large enough; 1 for any number. "
            "Processors compute in such multiples: a layer of 33 channels is hardly faster than one of 48.",
        ),
    ] = None,
    finetune: Annotated[
        int | None,
        typer.Option(
            "--finetune",
            metavar="EPOCHS",
            min=0,
            show_default="0",
            help="Train the pruned network on for so many epochs; needs --data.",
        ),
    ] = None,
    recipe: Recipe = None,
    data: Data = None,
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
    arch: Arch = None,
    arch_kwargs: ArchKwargs = None,
    trust_pickle: TrustPickle = False,
    output: Output = None,
    force: Force = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Take out of a network what it can do without: layers become physically smaller.

    Of a run with independent gates, what they close; of one whose gates look at images, the blocks that no
    image runs (if there are none, nothing is written). Of a checkpoint with --data, what gates learn to
    close. Of a checkpoint without data (or with --method importance), the channels that seem to matter least;
    then accuracy falls, and is not measured. What comes out is checked against the network with the same
    channels masked. --target is what is KEPT: some other tools ask for what is removed.

    \b
    Examples:
      adaptify prune model.pth --target 0.5 --data images
      adaptify prune runs/resnet56-gumbel-001 --target 0.4
      adaptify prune model.pth --target 0.7 --importance bn_scale --dry-run
      adaptify prune model.pth -t 0.5 --importance taylor --data images
    """
    from adaptify.cli import values
    from adaptify.cli.console import Console
    from adaptify.settings import parse_overrides

    console = Console(json=json, quiet=quiet, verbose=verbose)
    checkpoint, words = values.file_and_words(checkpoint, words or [])
    overrides = parse_overrides(words)
    options: dict[str, Any] = {
        **values.model_settings(
            checkpoint=None, arch=arch, arch_kwargs=arch_kwargs, trust_pickle=trust_pickle
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
                "run.batch_size": batch_size,
                "run.device": device,
                "run.seed": seed,
                "prune.target": target,
                "prune.round_to": round_to,
                "prune.finetune": finetune,
            }
        ),
    }
    if resume:
        from adaptify.cli.resuming import find, refuse

        refuse({"--recipe": recipe, "--output": output, "--force": force, "--dry-run": dry_run})
        unfinished = find("prune", checkpoint)
        method, judged_by = judging(method, importance)
        unfinished.check_settings({**options, **judged_by, **values.given({"method": method})}, overrides)
        values.check_consent(unfinished.recipe.model, {**options, **overrides})
        _work(unfinished.recipe, None, unfinished.beginning.force, auto_batch, console, unfinished)
        return
    settings = resolve_settings(checkpoint, method, importance, recipe, options, overrides)
    values.check_consent(settings.model, {**options, **overrides})
    if dry_run:
        _show_plan(settings, console)
    else:
        _work(settings, output, force, auto_batch, console, None)


def _show_plan(recipe: Settings, console: Console) -> None:
    from adaptify.cli.tables import gates_planned
    from adaptify.pipeline.prune import preview
    from adaptify.pipeline.pruning import pruning_part
    from adaptify.pipeline.retrofit import gates_rows
    from adaptify.reports.schema import Pruning
    from adaptify.reports.tables import pruning_table

    found = preview(recipe, progress=console)
    network = found.opened.network
    facts: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "architecture": network.architecture.to_json(),
        "macs": {"before": network.cost.total},
    }
    if found.pruned is not None:
        for note in found.pruned.notes:
            console.note(note)
        _say_macs(console, network.cost.total, found.pruned.macs)
        part = pruning_part(recipe, network, found.pruned)
        console.data(
            {**facts, "macs": {"before": network.cost.total, "after": found.pruned.macs}, "pruning": part}
        )
        console.show(pruning_table(Pruning.model_validate(part)))
    elif found.gates is not None:
        assert recipe.prune.target is not None
        _say_macs(console, network.cost.total, round(network.cost.total * recipe.prune.target))
        rows = gates_rows(found.gates)
        console.data({**facts, "sites": rows})
        console.show(gates_planned(rows, network.cost.total))
    console.say("dry run: nothing was trained, measured or written")


def _work(
    recipe: Settings,
    output: Path | None,
    force: bool,
    auto_batch: bool,
    console: Console,
    unfinished: Unfinished | None,
) -> None:
    from adaptify.pipeline import folder
    from adaptify.pipeline.prune import UNMEASURED
    from adaptify.pipeline.prune import prune as work
    from adaptify.reports.tables import headline_table, pruning_table
    from adaptify.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    if not recipe.data.source:
        console.warn(UNMEASURED)
    done = work(
        recipe, output=output, force=force, resume=unfinished, auto_batch=auto_batch, progress=console
    )
    if done is None:
        console.data({"run": None})
        console.say("nothing to remove: nothing was written")
        return
    report = done.report
    assert report.pruning is not None
    _say_macs(console, report.before.macs, round(report.after.macs))
    console.data({**report.to_json(), "run": str(done.folder)})
    console.show("", pruning_table(report.pruning), "", headline_table(report))
    more = f"retrofit {done.folder / folder.MODEL} --data FOLDER --max-drop 0.5"
    console.say(
        f"\nrun: {done.folder}\n"
        f"page: {done.folder / folder.PAGE}\n"
        "next:\n"
        f"  adaptify report {done.folder}\n"
        f"  adaptify {more if report.gating is None else f'evaluate {done.folder}'}"
    )


def _say_macs(console: Console, before: int, after: int) -> None:
    from adaptify.text import percent, quantity

    console.say(f"MACs: {quantity(before)} -> {quantity(after)} ({percent(after / before)} kept)")
