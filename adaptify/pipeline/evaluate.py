"""`evaluate`: what a network does on data, measured by running it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from adaptify import artifact
from adaptify.assembly import Adapted
from adaptify.data import Data, check_labels, open_data
from adaptify.errors import UsageError
from adaptify.input_spec import InputSpec
from adaptify.models.registry import Architecture
from adaptify.pipeline import folder
from adaptify.pipeline.prepare import input_spec, open_network
from adaptify.progress import SILENT, Progress
from adaptify.recipe import DataSection, ModelSection, resolve
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.device import pick_device
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.optimize import optimize
from adaptify.training.evaluate import evaluate
from adaptify.training.gate_records import observe_gates


@dataclass(frozen=True)
class ExitResult:
    """What left at one exit; the last one is the network's own output.

    Attributes:
        name: Name of the site.
        samples: How many left here.
        share: The same as a fraction.
        macs: MACs of a sample that leaves here.
        accuracy: Their accuracy, or None when there are none.
    """

    name: str
    samples: int
    share: float
    macs: int
    accuracy: float | None


@dataclass(frozen=True)
class Result:
    """What a network did on the test samples.

    Attributes:
        target: What was run.
        data: The data set.
        samples: Number of test samples.
        accuracy: Top-1 accuracy in [0, 1].
        macs: Mean MACs per sample.
        base_macs: MACs per sample of the network without exits.
        seconds: Time of the network alone.
        exits: One row per exit and the output.
    """

    target: str
    data: str
    samples: int
    accuracy: float
    macs: float
    base_macs: int
    seconds: float
    exits: tuple[ExitResult, ...]


def evaluate_target(
    target: Path,
    *,
    model: ModelSection | None = None,
    data: DataSection | None = None,
    batch_size: int = 256,
    device: str = "auto",
    trust_code: bool = False,
    progress: Progress = SILENT,
) -> Result:
    """Run a run folder, an artifact or a plain checkpoint over the test part of a data set.

    Args:
        target: What to run.
        model: How to load it, if it is a plain checkpoint.
        data: The data set; a run folder knows its own.
        batch_size: Images per batch.
        device: auto, cpu, cuda or cuda:N.
        trust_code: Whether an artifact may be built by code of the user.
        progress: Told how far it is.

    Raises:
        UsageError: The data is missing or does not fit.
        ModelError: The target cannot be loaded.
    """
    where = pick_device(device)
    recipe_file = target / folder.RECIPE
    if data is None and recipe_file.is_file():
        data = resolve(None, file=recipe_file).data
    if data is None or not data.source:
        raise UsageError(f"no data to evaluate {target} on", "Say which images: --data FOLDER.")
    network, spec = _open(target, model, data, trust_code)
    opened = open_data(
        data.source,
        input=spec,
        holdout=data.holdout,
        val_split=data.val_split,
        workers=data.workers,
        skip_corrupt=data.skip_corrupt,
        parts=["test"],
        progress=progress,
    )
    check_labels(opened, network.num_classes)
    if isinstance(network, GatedModel):
        return _evaluate_gates(network, target, opened, batch_size, where, progress)
    found = evaluate(
        optimize(network, where), opened.test, batch_size=batch_size, device=where, progress=progress
    )
    macs = network.exit_macs(network.policy)
    right = found.predictions == found.labels
    rows = []
    for index, name in enumerate([*(item.site.name for item in network.exits), "output"]):
        left = found.exit_index == index
        accuracy = float(right[left].double().mean()) if left.any() else None
        rows.append(ExitResult(name, int(left.sum()), float(left.double().mean()), macs[index], accuracy))
    return Result(
        target=str(target),
        data=opened.name,
        samples=len(found.labels),
        accuracy=found.accuracy,
        macs=float(found.macs(macs).double().mean()),
        base_macs=network.cost.total,
        seconds=found.seconds or 0.0,
        exits=tuple(rows),
    )


def _evaluate_gates(
    network: GatedModel,
    target: Path,
    data: Data,
    batch_size: int,
    device: torch.device,
    progress: Progress,
) -> Result:
    runs = optimize(network, device) if network.per_sample else network.to(device)
    seen = observe_gates(runs, data.test, batch_size=batch_size, device=device, progress=progress)
    base = network.cost.total
    macs = float(seen.macs.mean())
    row = ExitResult("output", len(seen.labels), 1.0, round(macs), seen.accuracy)
    return Result(str(target), data.name, len(seen.labels), seen.accuracy, macs, base, seen.seconds, (row,))


def _open(
    target: Path, model: ModelSection | None, data: DataSection, trust_code: bool
) -> tuple[Adapted, InputSpec]:
    if target.is_dir() or artifact.is_artifact(target):
        made_for = Architecture.from_json(artifact.read_plan(target).architecture).input
        spec = input_spec(made_for, data)
        if spec.shape != made_for.shape:
            raise UsageError(
                f"{target} is made for images of {made_for.height}x{made_for.width}, "
                f"not {spec.height}x{spec.width}",
                "Leave --input-size out: images are scaled.",
            )
        return artifact.load(target, trust_code=trust_code), spec
    network = open_network(model or ModelSection(checkpoint=str(target)), data)
    return AdaptiveModel(network.traced).eval(), network.architecture.input
