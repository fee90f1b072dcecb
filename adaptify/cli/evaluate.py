"""`adaptify evaluate`: run a network over test images, really skipping."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from adaptify.cli.options import (
    Arch,
    ArchKwargs,
    AutoBatch,
    BatchSize,
    Budgets,
    Data,
    Device,
    InputSize,
    Json,
    Mean,
    Quiet,
    SkipCorrupt,
    Std,
    Target,
    TrustPickle,
    ValSplit,
    Verbose,
    Workers,
)

if TYPE_CHECKING:
    from adaptify.pipeline.evaluate import Result


def evaluate(
    target: Target = None,
    data: Data = None,
    val_split: ValSplit = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    batch_size: BatchSize = None,
    auto_batch: AutoBatch = False,
    workers: Workers = None,
    skip_corrupt: SkipCorrupt = False,
    budget: Budgets = None,
    device: Device = None,
    arch: Arch = None,
    arch_kwargs: ArchKwargs = None,
    trust_pickle: TrustPickle = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Run a network over test images, and measure it.

    Accuracy, MACs and images per second; what leaves at an exit, or what gates close, is really left out.
    A run knows the data it was made with; for everything else, say --data.

    With --budget, the network runs once more for each budget, under the policy that was the most accurate
    within it on held-out images. Where one cannot be reached, the exit code is 5 after the others.

    \b
    Examples:
      adaptify evaluate
      adaptify evaluate --budget 0.5,0.7,45M
      adaptify evaluate runs/resnet56-dgate-001 --data images --batch-size 1
      adaptify evaluate runs/resnet56-dgate-001/model.safetensors --data images
      adaptify evaluate model.pth --data images --device cpu
    """
    from adaptify.cli import values
    from adaptify.cli.console import Console
    from adaptify.cli.runs import find_target
    from adaptify.errors import TargetError, UsageError

    console = Console(json=json, quiet=quiet, verbose=verbose)
    wanted = values.budgets(budget, "--budget") or []
    found = find_target(target)
    if target is None:
        console.say(f"run: {found}")
    recipe = found / "recipe.yaml"
    known = recipe.is_file()
    if not known and data is None:
        raise UsageError(f"no data to evaluate {found} on", "Say which images: --data FOLDER.")
    model = values.model_settings(
        checkpoint=str(found), arch=arch, arch_kwargs=arch_kwargs, trust_pickle=trust_pickle
    )
    images = values.data_settings(
        data=data,
        val_split=val_split,
        input_size=input_size,
        mean=mean,
        std=std,
        workers=workers,
        skip_corrupt=skip_corrupt,
    )

    # Not before the arguments are known to be right: what comes with these takes seconds to import.
    from adaptify.cli.tables import evaluation
    from adaptify.pipeline.evaluate import evaluate_target
    from adaptify.recipe import resolve
    from adaptify.runtime.allocator import keep_freed_memory

    running = values.given({"run.batch_size": batch_size, "run.device": device})
    if data is not None:  # how the run's own data were split says nothing about others
        images = {"data.val_split": None, "data.skip_corrupt": False, **images}
    settings = resolve(None, file=recipe if known else None, options={**model, **images, **running})
    keep_freed_memory()
    result = evaluate_target(
        found,
        model=settings.model,
        data=settings.data,
        budgets=wanted,
        batch_size=settings.run.batch_size,
        auto_batch=auto_batch,
        device=settings.run.device,
        trust_code=trust_pickle,
        progress=console,
    )
    console.data(_facts(result))
    console.show(*evaluation(result))
    if result.missed:  # what can be reached stands above
        raise TargetError("\n".join(miss.reason for miss in result.missed), result.missed[0].hint)


def _facts(result: Result) -> dict[str, Any]:
    facts = {
        "format": "adaptify.evaluation",
        "version": 1,
        **asdict(result),
        "kept": result.macs / result.base_macs,
        "images_per_second": _rate(result.samples, result.seconds),
    }
    budgets = [
        {**row, "images_per_second": _rate(result.samples, row["seconds"])} for row in facts.pop("budgets")
    ]
    missed = facts.pop("missed")
    return {**facts, "budgets": budgets, "missed": missed} if budgets else facts


def _rate(samples: int, seconds: float) -> float | None:
    return samples / seconds if seconds else None
