"""`adaptify sweep`: several methods and targets on one checkpoint, or a search, in one table and one plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaptify.cli.options import (
    Arch,
    ArchKwargs,
    BatchSize,
    Data,
    Device,
    DryRun,
    Holdout,
    Json,
    Overrides,
    Quiet,
    RecipeSeed,
    TrustPickle,
    ValSplit,
    Verbose,
    Workers,
)

if TYPE_CHECKING:
    from adaptify.cli.console import Console
    from adaptify.pipeline.search import Search
    from adaptify.pipeline.sweep import Sweep
    from adaptify.pipeline.sweep_file import Point

_TRIALS = 20


def sweep(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="[CKPT|SWEEP]",
            show_default=False,
            help="Checkpoint of a pretrained network; with --resume, the folder of a sweep.",
        ),
    ] = None,
    words: Overrides = None,
    methods: Annotated[
        str,
        typer.Option("--method", "-m", metavar="M,M,...", help="Methods, with commas between."),
    ] = "dgate",
    targets: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            metavar="T,T,...",
            show_default=False,
            help="Fractions of the MACs to KEEP, for methods that prune or are trained towards one. Exits "
            "need none: one run has all budgets.",
        ),
    ] = None,
    searched: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="KEY=SPACE",
            show_default=False,
            help="Look for good values of a setting, of one method: KEY=LOW..HIGH, KEY=LOW..HIGH:log or "
            "KEY=A,B,C. Can be given several times. Needs optuna.",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option("--trials", metavar="N", min=1, help=f"Runs of a search. Default: {_TRIALS}."),
    ] = None,
    data: Data = None,
    holdout: Holdout = None,
    val_split: ValSplit = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    device: Device = None,
    seed: RecipeSeed = None,
    arch: Arch = None,
    arch_kwargs: ArchKwargs = None,
    trust_pickle: TrustPickle = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Folder to make. Without it: sweeps/<checkpoint>-NNN."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with a sweep, the newest unless one is named: what is done is not run again.",
        ),
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Try several methods and targets, and see which operating points nothing else beats.

    Each is a run of its own in the folder of the sweep; what fails is noted, and the others go on. A setting
    KEY=VALUE is for all runs, METHOD.KEY=VALUE for those of one method. With --search, runs are trials: each
    has settings that follow from what those before gave on held-out images, for accuracy up and MACs down.

    \b
    Examples:
      adaptify sweep model.pth -m dgate,importance -t 0.4,0.6 --data images
      adaptify sweep model.pth -m dgate --data images dgate.gates.pool=4
      adaptify sweep model.pth --data images --search gates.pool=1,2,4 --trials 3
      adaptify sweep --resume sweeps/model-001
    """
    from adaptify.cli import values
    from adaptify.cli.console import Console
    from adaptify.errors import UsageError
    from adaptify.settings import parse_overrides

    console = Console(json=json, quiet=quiet, verbose=verbose)
    first, rest = values.file_and_words(checkpoint, words or [])
    overrides = parse_overrides(rest)
    names = values.names(methods, "--method") or []
    aims = values.numbers(targets, "--target") or []
    options = {
        **values.model_settings(
            checkpoint=first, arch=arch, arch_kwargs=arch_kwargs, trust_pickle=trust_pickle
        ),
        **values.data_settings(
            data=data,
            holdout=holdout,
            val_split=val_split,
            input_size=None,
            mean=None,
            std=None,
            workers=workers,
            skip_corrupt=False,
        ),
        **values.given({"run.batch_size": batch_size, "run.device": device, "run.seed": seed}),
    }
    if resume:
        beside = options.keys() - {"model.checkpoint", "model.trust_pickle"}
        if beside or overrides or output is not None or dry_run or searched or trials is not None:
            raise UsageError(
                "--resume takes the folder of a sweep, and nothing else: it goes on as it began",
                "Write: adaptify sweep --resume, or adaptify sweep --resume sweeps/NAME.",
            )
        _go_on(first, options, console)
        return
    if first is None and "model.checkpoint" not in overrides:
        raise UsageError("no checkpoint to sweep over", "Name one: adaptify sweep CKPT --data FOLDER.")
    if "data.source" not in {**options, **overrides}:
        raise UsageError(
            "no data to work with", "Say which images: --data FOLDER, cifar10:FOLDER, digits or fake:N."
        )

    if trials is not None and not searched:
        raise UsageError("--trials is of a search", "Say what to look for: --search train.lr=1e-3..1e-1:log.")
    if searched and (len(names) > 1 or len(aims) > 1):
        raise UsageError(
            "a search is of one method, and has one target at most",
            "Search for each of them, or search the target: --search prune.target=0.3..0.8.",
        )

    # Not before the arguments are known to be right: what comes with these takes seconds to import.
    from adaptify.pipeline.sweep import new_sweep
    from adaptify.pipeline.sweep_plan import plan_points, plan_search

    if searched:
        search, common = plan_search(
            names[0], aims[0] if aims else None, searched, trials or _TRIALS, options, overrides
        )
        if dry_run:
            _show_search(search, common, console)
        else:
            _work(new_sweep([common], search, output=output), console)
        return
    points = plan_points(names, aims, options, overrides)
    if dry_run:
        _show_plan(points, console)
    else:
        _work(new_sweep(points, output=output), console)


def _go_on(named: str | None, options: Mapping[str, Any], console: Console) -> None:
    from adaptify.cli import values
    from adaptify.pipeline.sweep import newest_stopped
    from adaptify.pipeline.sweep_file import read_index

    path = Path(named) if named is not None else newest_stopped()
    for point in read_index(path)[0]:
        values.check_consent(point.recipe.model, options)
    _work(path, console)


def _show_plan(points: tuple[Point, ...], console: Console) -> None:
    console.data(
        [
            {"name": item.name, "command": item.command, "recipe": item.recipe.model_dump(mode="json")}
            for item in points
        ]
    )
    console.show(*(f"{item.name}: {item.command}" for item in points))
    console.say("dry run: nothing was trained or written")


def _show_search(search: Search, common: Point, console: Console) -> None:
    recipe = common.recipe
    console.data(
        {
            "command": common.command,
            "trials": search.trials,
            "space": {name: str(values) for name, values in search.space.items()},
            "recipe": recipe.model_dump(mode="json"),
        }
    )
    console.show(
        f"{search.trials} trials of {recipe.method}: {common.command}",
        *(f"{name}: {values}" for name, values in search.space.items()),
    )
    console.say("dry run: nothing was trained or written")


def _work(path: Path, console: Console) -> None:
    from adaptify.pipeline.sweep import PAGE, run_sweep
    from adaptify.reports.curves import came
    from adaptify.reports.pareto import pareto_table
    from adaptify.reports.tables.comparison import comparison_tables
    from adaptify.reports.tables.trials import trials_tables
    from adaptify.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    done = run_sweep(path, progress=console)
    console.data(_facts(done))
    base = came(done.reports[0][1])
    if done.search is None:
        console.show(*comparison_tables(done.comparison), "", pareto_table(done.front, base))
    else:
        judged = {item.name: item.held_out for item in done.points if item.held_out is not None}
        chosen = {item.name: item.settings for item in done.points}
        title = "What nothing else beats on held-out samples (figures: test samples)"
        console.show(*trials_tables(done.reports, judged, chosen), "", pareto_table(done.front, base, title))
    for point in done.points:
        if point.status == "failed":
            console.warn(f"{point.name} failed: {point.error}")
    best = done.front[-1].run if done.front else ""
    console.say(
        f"\nsweep: {done.folder}\npage: {done.folder / PAGE}\n"
        f"next:\n  adaptify report {done.folder / (best or done.reports[0][0])}"
    )


def _facts(done: Sweep) -> dict[str, object]:
    return {
        "format": "adaptify.sweep",
        "version": 1,
        "sweep": str(done.folder),
        "points": [_told(point) for point in done.points],
        "front": [point.to_json() for point in done.front],
        "comparison": done.comparison.to_json(),
    }


def _told(point: Point) -> dict[str, object]:
    told: dict[str, object] = {"name": point.name, "status": point.status, "error": point.error}
    if point.settings:
        told["settings"] = dict(point.settings)
    if point.held_out is not None:
        told["held_out"] = dict(zip(("macs", "accuracy"), point.held_out, strict=True))
    return told
