"""`bench`: what a network and its original take on this machine, measured in turns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptify.assembly import Adapted
from adaptify.bench.backends import check_names
from adaptify.bench.measure import ORIGINAL, RESULT, Measured, Settings, measure
from adaptify.data import Data
from adaptify.environment import describe_environment
from adaptify.errors import UsageError
from adaptify.freeze import without_fixed_gates
from adaptify.graph.trace import trace
from adaptify.input_spec import InputSpec
from adaptify.models.registry import Architecture
from adaptify.pipeline import folder
from adaptify.pipeline.evaluate import open_target
from adaptify.pipeline.prepare import open_section
from adaptify.progress import SILENT, Progress
from adaptify.recipe import DataSection, ModelSection, resolve
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.device import pick_device

RANDOM = "random"
"""The name that stands for random values instead of a data set."""

_MOST_IMAGES = 64


@dataclass(frozen=True)
class Benched:
    """What was measured, and of what.

    Attributes:
        target: What was run.
        original: What it was run against; None: nothing.
        data: The data set that the images are of; None: random values.
        device: Where.
        threads: How many threads PyTorch and onnxruntime had, on a CPU.
        measured: The figures.
        notes: What a reader should know.
        environment: See `describe_environment`.
    """

    target: str
    original: str | None
    data: str | None
    device: str
    threads: int
    measured: Measured
    notes: tuple[str, ...]
    environment: dict[str, Any]


def bench(
    target: Path,
    settings: Settings,
    *,
    against: Path | None = None,
    model: ModelSection | None = None,
    data: DataSection | None = None,
    device: str = "auto",
    trust_code: bool = False,
    progress: Progress = SILENT,
) -> Benched:
    """Measure a run folder, an artifact or a plain checkpoint against what it was made of.

    Args:
        target: What to run.
        settings: How to measure.
        against: Another one to run beside it; without it, a run is held against its own architecture before
            anything was done to it.
        model: How to load plain checkpoints.
        data: Images; a run knows its own. `RANDOM` as its source: random values.
        device: auto, cpu, cuda or cuda:N.
        trust_code: Whether an artifact may be built by code of the user.
        progress: Told how far it is.

    Raises:
        UsageError: A backend or the data cannot be used, or the networks take different images.
        ModelError: A network cannot be loaded.
    """
    check_names(settings.backends)
    where = pick_device(device)
    recipe = target / folder.RECIPE
    known = resolve(None, file=recipe).data if recipe.is_file() else None
    wanted = data or known or DataSection(source=RANDOM)
    network, spec = open_target(target, model, wanted, trust_code)
    networks = {RESULT: without_fixed_gates(network)}
    notes: list[str] = []
    if against is not None:
        section = None if model is None else model.model_copy(update={"checkpoint": str(against)})
        other, other_spec = open_target(against, section, wanted, trust_code)
        if other_spec.shape != spec.shape:
            raise UsageError(
                f"{target} takes images of {_shape(spec)}, {against} of {_shape(other_spec)}",
                "Compare networks that take the same images.",
            )
        networks = {ORIGINAL: without_fixed_gates(other), **networks}
        original = str(against)
    elif network.plan is not None:
        architecture = Architecture.from_json(network.plan.architecture)
        networks = {ORIGINAL: as_it_came(architecture), **networks}
        original = architecture.name
        notes.append("the original has random weights, which take the same time as trained ones")
    else:
        original = None
    images, name = _images(wanted, known if data is None else None, spec, settings, notes, progress)
    if name is None and any(_decides(item) for item in networks.values()):
        notes.append("what gates decide about random images means nothing, and neither does what it saves")
    for item in networks.values():
        item.eval()
    return Benched(
        target=str(target),
        original=original,
        data=name,
        device=str(where),
        threads=torch.get_num_threads(),
        measured=measure(networks, images.to(where), settings, device=where, progress=progress),
        notes=tuple(notes),
        environment=describe_environment(),
    )


def as_it_came(architecture: Architecture) -> AdaptiveModel:
    """Return the network that a plan starts from; its speed does not depend on its weights."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        module = architecture.build().eval()
    return AdaptiveModel(trace(module, architecture.input.shape)).eval()


def _decides(model: Adapted) -> bool:
    return not isinstance(model, AdaptiveModel) or bool(model.exits)


def _images(
    data: DataSection,
    own: DataSection | None,
    spec: InputSpec,
    settings: Settings,
    notes: list[str],
    progress: Progress,
) -> tuple[Tensor, str | None]:
    """Images for at least one batch, and the name of the data set that they are of."""
    count = max(*settings.batch_sizes, _MOST_IMAGES)
    if data.source not in (RANDOM, None):
        try:
            opened = open_section(data, spec, progress=progress)
        except UsageError as error:
            if own is None:
                raise
            notes.append(f"random images: {error.message}")
        else:
            return _take(opened, count), opened.name
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *spec.shape, generator=generator), None


def _take(data: Data, count: int) -> Tensor:
    """So many test images of all classes, some of them twice where there are fewer."""
    images, _ = next(iter(data.test.batches(min(count, len(data.test)), shuffle=True)))
    times = -(-count // len(images))
    return images.repeat(times, 1, 1, 1)[:count]


def _shape(spec: InputSpec) -> str:
    return "x".join(map(str, spec.shape))
