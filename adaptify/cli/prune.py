"""`adaptify prune`: take channels out of a pretrained network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adaptify.cli.options import (
    Arch,
    ArchKwargs,
    BatchSize,
    Checkpoint,
    Data,
    Device,
    DryRun,
    Force,
    InputSize,
    Json,
    Mean,
    Output,
    Quiet,
    SkipCorrupt,
    Std,
    TrustPickle,
    ValSplit,
    Verbose,
    Workers,
)

if TYPE_CHECKING:
    from adaptify.cli.console import Console
    from adaptify.pipeline.prune import Preview, Request


def prune(
    checkpoint: Checkpoint,
    target: Annotated[
        float,
        typer.Option(
            "--target",
            "-t",
            metavar="FRACTION",
            show_default=False,
            help="Fraction of the MACs that is KEPT, met within 1% (0.4: from 4.09 G to 1.64 G).",
        ),
    ],
    importance: Annotated[
        str,
        typer.Option(
            "--importance",
            metavar="NAME",
            help="What channels are judged by: l1 or l2 (norm of their weights), bn_scale (scale of their "
            "BatchNorm), fpgm (distance to the other filters), taylor (effect on the loss, on images of "
            "--data).",
        ),
    ] = "l2",
    round_to: Annotated[
        int,
        typer.Option(
            "--round-to",
            metavar="N",
            help="Keep channels in multiples of N where layers are large enough; 1 for any number. "
            "Processors compute in such multiples: a layer of 33 channels is hardly faster than one of 48.",
        ),
    ] = 16,
    data: Data = None,
    val_split: ValSplit = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    skip_corrupt: SkipCorrupt = False,
    device: Device = None,
    arch: Arch = None,
    arch_kwargs: ArchKwargs = None,
    trust_pickle: TrustPickle = False,
    output: Output = None,
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Take the least important channels out of a pretrained network, without training.

    Layers become physically smaller; what comes out is checked against the network with these channels
    masked. Accuracy falls, and is measured when --data is given. --target is what is KEPT: some other tools
    ask for what is removed.

    \b
    Examples:
      adaptify prune resnet56.th --target 0.7 --data cifar10:data
      adaptify prune model.pth --target 0.4 --importance bn_scale --dry-run
      adaptify prune resnet56.th --target 0.5 --importance taylor --data cifar10:data
      adaptify prune runs/resnet50-importance-001 --target 0.8 --round-to 8
    """
    from adaptify.cli import values
    from adaptify.cli.console import Console
    from adaptify.cli.runs import find_target
    from adaptify.pipeline.prune import Request
    from adaptify.recipe import resolve

    console = Console(json=json, quiet=quiet, verbose=verbose)
    model = values.model_settings(
        checkpoint=str(find_target(checkpoint)), arch=arch, arch_kwargs=arch_kwargs, trust_pickle=trust_pickle
    )
    images = values.data_settings(
        data=data or "",
        val_split=val_split,
        input_size=input_size,
        mean=mean,
        std=std,
        workers=workers,
        skip_corrupt=skip_corrupt,
    )
    running = values.given({"run.batch_size": batch_size, "run.device": device})
    settings = resolve(None, options={**model, **images, **running})
    request = Request(settings.model, settings.data, target, importance, round_to, settings.run)
    _work(request, output, force, dry_run, console)


def _work(request: Request, output: Path | None, force: bool, dry_run: bool, console: Console) -> None:
    from adaptify.pipeline import folder
    from adaptify.pipeline.prune import UNMEASURED, open_test_data, preview
    from adaptify.pipeline.prune import prune as work
    from adaptify.report.schema import Pruning
    from adaptify.report.tables import headline_table, pruning_table
    from adaptify.runtime.allocator import keep_freed_memory
    from adaptify.text import percent, quantity

    if not dry_run:
        folder.check_output(output, force=force)
    found = preview(request, progress=console)
    for note in found.notes:
        console.note(note)
    before, after = found.network.cost.total, found.pruned.selection.macs
    console.say(f"MACs: {quantity(before)} -> {quantity(after)} ({percent(after / before)} kept)")
    if not request.data.source:
        console.warn(UNMEASURED)
    table = pruning_table(Pruning.model_validate(found.facts(request)))
    if dry_run:
        open_test_data(request, found)
        console.data(_facts(found, request))
        console.show(table)
        console.say("dry run: nothing was measured or written")
        return
    keep_freed_memory()
    done = work(request, output=output, force=force, progress=console, found=found)
    console.data({**done.report.to_json(), "run": str(done.folder)})
    console.show("", table, "", headline_table(done.report))
    console.say(
        f"\nrun: {done.folder}\n"
        f"page: {done.folder / folder.PAGE}\n"
        "next:\n"
        f"  adaptify report {done.folder}\n"
        f"  adaptify retrofit {done.folder / folder.MODEL} --data FOLDER --max-drop 0.5"
    )


def _facts(found: Preview, request: Request) -> dict[str, object]:
    return {
        "architecture": found.network.architecture.to_json(),
        "macs": {"before": found.network.cost.total, "after": found.pruned.selection.macs},
        "pruning": found.facts(request),
        "notes": list(found.notes),
    }
