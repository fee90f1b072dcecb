"""`adaptify bench`: how long a network and its original take on this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaptify.cli import completion
from adaptify.cli.options import (
    Arch,
    ArchKwargs,
    Device,
    InputSize,
    Json,
    Quiet,
    Target,
    TrustPickle,
    ValSplit,
    Verbose,
)

if TYPE_CHECKING:
    from adaptify.pipeline.bench import Benched


def bench(
    target: Target = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="TARGET",
            show_default=False,
            help="What to compare with: a run folder, an artifact or a checkpoint. Without it: what the run "
            "started from.",
            autocompletion=completion.runs,
        ),
    ] = None,
    batch_sizes: Annotated[
        str, typer.Option("--batch-sizes", metavar="N,N,...", help="Images in a batch.")
    ] = "1,8,32",
    backends: Annotated[
        str | None,
        typer.Option(
            "--backends",
            metavar="B,B,...",
            help="Ways to run both networks: eager, channels_last, folded, fast, compile, onnxruntime. "
            "Default: the first four.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Images as `evaluate` takes them, or 'random'. A run knows its own.",
        ),
    ] = None,
    val_split: ValSplit = None,
    input_size: InputSize = None,
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", metavar="N", min=1, help="How often each is run. Default: by --seconds."),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            metavar="S",
            help="Time for one network in one backend at one batch size. Default: 3.",
        ),
    ] = None,
    device: Device = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", metavar="N", min=1, help="Threads on a CPU. Without it: as PyTorch has it."
        ),
    ] = None,
    arch: Arch = None,
    arch_kwargs: ArchKwargs = None,
    trust_pickle: TrustPickle = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Measure how long a network takes, beside its original, in turns.

    A run is held against the architecture that it started from. Both are given the same treatment in every
    backend: `fast` is what `adaptify.optimize` makes of a network, and what `evaluate` runs. MACs stand
    beside times, and below it is said where the saving went that did not arrive.

    What exits and gates save depends on the images: random ones say nothing about it.

    \b
    Examples:
      adaptify bench
      adaptify bench runs/resnet56-dgate-001 --batch-sizes 1,8,64 --threads 1
      adaptify bench runs/resnet56-dgate-001 --backends fast,folded --rounds 20
      adaptify bench runs/resnet56-gumbel-001 --against runs/resnet56-dgate-001
      adaptify bench model.pth --data random --seconds 1
    """
    from adaptify.cli import values
    from adaptify.cli.console import Console
    from adaptify.cli.runs import find_target

    console = Console(json=json, quiet=quiet, verbose=verbose)
    found = find_target(target)

    # Not before the arguments are known to be right: what comes with these takes seconds to import.
    from adaptify.cli.bench_tables import benched
    from adaptify.pipeline.bench import bench as work
    from adaptify.recipe import DataSection, ModelSection
    from adaptify.runtime.allocator import keep_freed_memory

    settings = _settings(batch_sizes, backends, rounds, seconds)
    if target is None:
        console.say(f"run: {found}")
    section = None
    if data is not None:
        given = {
            "source": data,
            "val_split": val_split,
            "input_size": values.size(input_size, "--input-size"),
        }
        section = DataSection.model_validate(values.given(given))
    model = {
        "checkpoint": str(found),
        "arch": arch,
        "arch_kwargs": values.json_object(arch_kwargs, "--arch-kwargs"),
        "trust_pickle": trust_pickle,
    }
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    keep_freed_memory()
    result = work(
        found,
        settings,
        against=None if against is None else find_target(against),
        model=ModelSection.model_validate(values.given(model)),
        data=section,
        device=device or "auto",
        trust_code=trust_pickle,
        progress=console,
    )
    for note in result.notes:
        console.note(note)
    for missing in result.measured.missing:
        console.note(f"{missing.backend}: not for the {missing.network}: {missing.reason}")
    console.data(_facts(result))
    console.show(*benched(result))


def _settings(batch_sizes: str, backends: str | None, rounds: int | None, seconds: float | None) -> Any:
    from adaptify.bench.backends import DEFAULT, check_names
    from adaptify.bench.measure import SECONDS, Settings
    from adaptify.cli import values
    from adaptify.errors import UsageError

    if rounds is not None and seconds is not None:
        raise UsageError("--rounds and --seconds both say how long to measure", "Give one of them.")
    if seconds is not None and not 0 < seconds < float("inf"):
        raise UsageError(f"--seconds {seconds:g} is no length of time", "Give a positive number.")
    names = values.names(backends, "--backends")
    chosen = DEFAULT if names is None else tuple(dict.fromkeys(names))
    check_names(chosen)
    return Settings(values.counts(batch_sizes, "--batch-sizes"), chosen, rounds, seconds or SECONDS)


def _facts(result: Benched) -> dict[str, Any]:
    return {"format": "adaptify.bench", "version": 1, **asdict(result)}
