"""`prune`: a checkpoint goes in, the same network with fewer channels comes out, checked and reported."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptify import artifact
from adaptify.data import Data, check_labels, open_data
from adaptify.data.open import Part
from adaptify.environment import describe_environment
from adaptify.errors import UsageError
from adaptify.files import write_text
from adaptify.graph.selection import TOLERANCE as TARGET_TOLERANCE
from adaptify.pipeline import folder
from adaptify.pipeline.job import peak_memory
from adaptify.pipeline.prepare import Network, classes_of, open_network
from adaptify.pipeline.pruning import (
    FROM_IMAGES,
    Pruned,
    check_importance,
    pruned_layers,
    remove_least,
    size_of,
    take_turns,
    verify,
)
from adaptify.pipeline.reporting import layer_rows, provenance
from adaptify.plan import Plan
from adaptify.progress import SILENT, Progress
from adaptify.recipe import DataSection, ModelSection, RunSection
from adaptify.report.html import write_html
from adaptify.report.schema import PrunedLayer, Report, write_report
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.device import pick_device
from adaptify.runtime.optimize import optimize
from adaptify.training.evaluate import evaluate

METHOD = "importance"
UNMEASURED = "accuracy was not measured: --data measures it"

JUDGED_IMAGES = 1024
"""Training images that importance is judged on, where it needs images."""

_JUDGED_BATCH = 64  # gradients are averaged inside a batch: of a trained network's, large batches leave noise


@dataclass(frozen=True)
class Request:
    """What is to be pruned, and how far.

    Attributes:
        model: The checkpoint.
        data: The images; with an empty source, nothing is measured on them, and only what is said of
            the input's size counts.
        target: Fraction of the MACs to keep.
        importance: What channels are judged by, one of `pipeline.pruning.IMPORTANCES`.
        round_to: Multiple of channels to keep.
        run: How the work is done.
    """

    model: ModelSection
    data: DataSection
    target: float
    importance: str = "l2"
    round_to: int = 16
    run: RunSection = field(default_factory=RunSection)


@dataclass(frozen=True)
class Preview:
    """What pruning does to a network, before it is measured or written.

    Attributes:
        network: The network before.
        pruned: The network after.
        layers: Channels and MACs of each layer, before and after.
        notes: What the user should know.
        data: The images, if the importance of channels was judged on some of them.
    """

    network: Network
    pruned: Pruned
    layers: tuple[PrunedLayer, ...]
    notes: tuple[str, ...]
    data: Data | None = None

    def facts(self, request: Request) -> dict[str, Any]:
        """The `pruning` part of a report."""
        return {
            "target": request.target,
            "achieved": self.pruned.selection.fraction,
            "importance": request.importance,
            "round_to": self.pruned.selection.round_to,
            "frozen": {reason: list(names) for reason, names in self.pruned.channels.frozen_reasons.items()},
            "layers": [layer.model_dump() for layer in self.layers],
        }


@dataclass(frozen=True)
class Finished:
    """A finished run: its folder and its report."""

    folder: Path
    report: Report


def preview(request: Request, *, progress: Progress = SILENT) -> Preview:
    """Open the network and remove channels; nothing is measured or written.

    Raises:
        UsageError, ModelError: As loading does, or the importance needs images and there are none.
        TargetError: The target cannot be met; the message names what can.
    """
    check_importance(request.importance)
    from_images = request.importance in FROM_IMAGES
    if from_images and not request.data.source:
        raise UsageError(
            f"the importance '{request.importance}' is judged on training images, and there are none",
            "Say which: --data FOLDER, cifar10:FOLDER, digits or fake:N.",
        )
    network = open_network(request.model, request.data)
    classes_of(network)  # it must return one score per class
    data: Data | None = None
    batches: Iterable[tuple[Tensor, Tensor]] = ()
    device = pick_device(request.run.device)
    if from_images:
        data = _open_data(request, network, ("train", "test"), progress)
        batches = _judged(data, request.run, device)
    pruned = remove_least(network, request.target, request.importance, request.round_to, batches, device)
    notes = list(network.notes)
    if data is not None:
        count = min(len(data.train), JUDGED_IMAGES)
        notes.append(f"the importance of channels was judged on {count} training images")
    if network.placed:
        notes.append("the exits that the network has are left out: they were trained on all channels")
    if pruned.selection.round_to < request.round_to:
        notes.append(
            f"channels are multiples of {pruned.selection.round_to}, not of {request.round_to}: "
            f"no such choice is within {TARGET_TOLERANCE:.0%} of the target"
        )
    return Preview(network, pruned, tuple(pruned_layers(network, pruned)), tuple(notes), data)


def open_test_data(request: Request, before: Preview, *, progress: Progress = SILENT) -> Data | None:
    """Open the test part of the data, if there is any and it is not open yet.

    Raises:
        UsageError: The data cannot be used, or its labels do not match the network.
    """
    if before.data is not None or not request.data.source:
        return before.data
    return _open_data(request, before.network, ("test",), progress)


def _open_data(request: Request, network: Network, parts: tuple[Part, ...], progress: Progress) -> Data:
    section = request.data
    data = open_data(
        section.source,
        input=network.architecture.input,
        holdout=section.holdout,
        val_split=section.val_split,
        seed=request.run.seed,
        workers=section.workers,
        skip_corrupt=section.skip_corrupt,
        parts=parts,
        progress=progress,
    )
    check_labels(data, classes_of(network))
    return data


def _judged(data: Data, run: RunSection, device: torch.device) -> Iterable[tuple[Tensor, Tensor]]:
    """Batches of the training images that importance is judged on."""
    size = min(run.batch_size, _JUDGED_BATCH)
    batches = data.train.batches(size, shuffle=True, seed=run.seed, device=device)
    return islice(batches, max(1, JUDGED_IMAGES // size))


def prune(
    request: Request,
    *,
    output: Path | None = None,
    force: bool = False,
    progress: Progress = SILENT,
    found: Preview | None = None,
) -> Finished:
    """Prune a checkpoint without training, and write the run folder.

    The folder appears when everything in it has been written, opened again and checked.

    Args:
        request: What to prune.
        output: The folder to make; without it, `runs/<model>-importance-NNN`.
        force: Replace `output` if it is there.
        progress: Told how far it is.
        found: What `preview(request)` gave, if it was called.

    Raises:
        AdaptifyError: As each stage does; then no folder is left behind.
    """
    started = time.perf_counter()
    folder.check_output(output, force=force)
    device = pick_device(request.run.device)
    found = found or preview(request, progress=progress)
    network, pruned = found.network, found.pruned
    data = open_test_data(request, found, progress=progress)
    stem = f"{network.architecture.name.partition(':')[2].replace(':', '.')}-{METHOD}"
    with folder.new_run(stem, output=output, force=force) as run:
        model = AdaptiveModel(pruned.traced).eval()
        model.plan = _plan(request, network, pruned)
        artifact.save(model, run.work / folder.MODEL)
        # What is verified and measured is the file that was written.
        written = artifact.load(run.work / folder.MODEL, trust_code=True)
        assert isinstance(written, AdaptiveModel)
        difference = verify(pruned, written)
        sizes = _measure(request, (AdaptiveModel(network.traced).eval(), written), data, device, progress)
        notes = [
            *found.notes,
            *(data.notes if data is not None else [UNMEASURED]),
            f"pruned and masked network differ by {difference:.1e} of the largest output",
        ]
        macs = written.cost.total
        report = Report.model_validate(
            {
                **provenance(written),
                "data": data.describe() if data is not None else None,
                "before": {"macs": network.cost.total, **sizes[0]},
                "after": {"macs": macs, "kept": macs / network.cost.total, **sizes[1]},
                "macs_per_sample": {"mean": macs, "median": macs, "p95": macs},
                "pruning": {**found.facts(request), "device": str(device)},
                "layers": layer_rows(written, torch.zeros(1, dtype=torch.int64)),
                "timing": {"prune_s": time.perf_counter() - started, "peak_memory_bytes": peak_memory()},
                "notes": notes,
            }
        )
        write_text(run.work / folder.ENVIRONMENT, json.dumps(describe_environment(), indent=1) + "\n")
        write_report(report, run.work / folder.REPORT)
        write_html(report, run.work / folder.PAGE)
    return Finished(run.final, report)


def _plan(request: Request, network: Network, pruned: Pruned) -> Plan:
    options = {
        "target": request.target,
        "importance": request.importance,
        "round_to": pruned.selection.round_to,
    }
    return Plan(
        architecture=network.architecture.to_json(),
        steps=(*network.steps, pruned.step),
        method={"name": METHOD, "options": options},
        source=network.source,
        base_macs=network.cost.total,
    )


def _measure(
    request: Request,
    models: tuple[AdaptiveModel, AdaptiveModel],
    data: Data | None,
    device: torch.device,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Accuracy, if there is data, time and size of each network, as a report has them."""
    fast = [optimize(model, device) for model in models]
    accuracies: list[float | None] = [None for _ in fast]
    if data is not None:
        size = request.run.batch_size
        accuracies = [
            evaluate(model, data.test, batch_size=size, device=device, progress=progress).accuracy
            for model in fast
        ]
    with progress.stage("time"):
        milliseconds = take_turns(fast, device)
    return [
        {"accuracy": accuracy, "milliseconds": taken, **size_of(model.backbone())}
        for model, accuracy, taken in zip(models, accuracies, milliseconds, strict=True)
    ]
