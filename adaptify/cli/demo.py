"""`adaptify demo`: the whole way on a small example."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adaptify.cli.options import Force, Json, Quiet, Seed, Verbose

# The data set is small: fewer held-out digits could not tell a point of accuracy from chance.
_HOLDOUT = 0.4
_MAX_DROP = 1.0


def demo(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the checkpoint and the run."),
    ] = Path("adaptify-demo"),
    seed: Seed = 0,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Go the whole way on a small example: train, retrofit, calibrate, report.

    A small residual network learns handwritten digits (1,797 images that come with adaptify) and then gets
    early exits. Nothing is downloaded. Takes less than two minutes on two cores.

    \b
    Examples:
      adaptify demo
      adaptify demo --output elsewhere --seed 1
    """
    from adaptify.cli.console import Console
    from adaptify.pipeline import folder
    from adaptify.pipeline.demo import DATA, train_digits
    from adaptify.pipeline.retrofit import retrofit
    from adaptify.recipe import resolve
    from adaptify.reports.tables import report_tables
    from adaptify.runtime.allocator import keep_freed_memory
    from adaptify.text import percent

    console = Console(json=json, quiet=quiet, verbose=verbose)
    keep_freed_memory()
    checkpoint = output / "digits_resnet.pt"
    run = output / "run"
    accuracy = train_digits(checkpoint, seed=seed, force=force, progress=console)
    console.say(f"{checkpoint}: a residual network that reads {percent(accuracy)} of the test digits")
    asked = f"--data {DATA} --holdout {_HOLDOUT} --max-drop {_MAX_DROP:g}"
    console.say(f"\n$ adaptify retrofit {checkpoint} {asked} -o {run}")
    options = {
        "model.checkpoint": str(checkpoint),
        "data.source": DATA,
        "data.holdout": _HOLDOUT,
        "calibrate.max_drop": _MAX_DROP,
        "run.seed": seed,
    }
    done = retrofit(resolve("dgate", options=options), output=run, force=force, progress=console)
    console.data(done.report.to_json() | {"run": str(done.folder)})
    console.show(*report_tables(done.report, layers=False))
    console.say(
        f"The report: {done.folder / folder.PAGE}\n"
        f"Another point of its frontier, without training: adaptify calibrate {done.folder} --budget 0.5\n"
        "Your own network: adaptify inspect CKPT"
    )
