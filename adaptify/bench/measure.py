"""An original and what became of it, run in turns in every form in which they can be run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from adaptify.assembly import Adapted
from adaptify.bench.backends import Runner, UnavailableError, runner
from adaptify.bench.memory import PeakMemory
from adaptify.bench.split import Spent, Split, split_time
from adaptify.progress import SILENT, Progress
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.optimize import optimize
from adaptify.runtime.timing import Spread, interleaved, ratio

ORIGINAL, RESULT = "original", "result"

SECONDS = 3.0
"""For one network in one form at one batch size, unless something else is asked for."""

_LEAST_ROUNDS = 5
_IMAGES = 64  # run in a round, where that is quick enough


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        batch_sizes: Images in a batch.
        backends: Keys of `BACKENDS`.
        rounds: How often each runs; None: by `seconds`.
        seconds: For one network in one form at one batch size.
    """

    batch_sizes: tuple[int, ...]
    backends: tuple[str, ...]
    rounds: int | None = None
    seconds: float = SECONDS


@dataclass(frozen=True)
class Figures:
    """What a network takes in some form.

    Attributes:
        ms: Milliseconds of a batch.
        images_per_second: From the median.
        memory: The most bytes that it takes, weights included; None where the system does not tell.
    """

    ms: Spread
    images_per_second: float
    memory: int | None


@dataclass(frozen=True)
class Row:
    """A batch size in a backend.

    Attributes:
        backend: Its name.
        batch: Images in a batch.
        original: What the original takes; None where there is none, or it cannot be run so.
        result: What the result takes; None where it cannot be run so.
        time: Ratio of their times, result : original; None where one is missing.
    """

    backend: str
    batch: int
    original: Figures | None
    result: Figures | None
    time: Spread | None


@dataclass(frozen=True)
class Batch:
    """What is the same in all backends at a batch size.

    Attributes:
        batch: Images in a batch.
        images: Images in a round.
        macs: Mean MACs of one of them in the result.
        kept: The same as a fraction of those of the original; None without an original.
        split: Where the time of the fast form goes; None where that is not known, or nothing is skipped.
    """

    batch: int
    images: int
    macs: float
    kept: float | None
    split: Split | None


@dataclass(frozen=True)
class Missing:
    """A network that cannot be run in a form, and why."""

    backend: str
    network: str
    reason: str


@dataclass(frozen=True)
class Measured:
    """All that was measured."""

    batches: tuple[Batch, ...]
    rows: tuple[Row, ...]
    missing: tuple[Missing, ...]


@torch.inference_mode()
def measure(
    networks: Mapping[str, Adapted],
    images: Tensor,
    settings: Settings,
    *,
    device: torch.device,
    progress: Progress = SILENT,
) -> Measured:
    """Time networks on the same images.

    Args:
        networks: The `RESULT`, and perhaps the `ORIGINAL`, on the CPU in evaluation mode.
        images: (N, C, H, W) on `device`; at least one batch of the largest size.
        settings: How.
        device: Where.
        progress: Told how far it is.
    """
    sizes = sorted(set(settings.batch_sizes))
    ways: dict[tuple[str, str], _Way] = {}
    missing = []
    with progress.stage("prepare", total=len(settings.backends) * len(networks)) as stage:
        # Code and tables of PyTorch that the first run loads belong to no network.
        for model in networks.values():
            optimize(model, device)(images[: sizes[-1]])
        for backend in settings.backends:
            for name, model in networks.items():
                memory = PeakMemory(device)
                try:
                    run = runner(backend, model, device, images[: sizes[0]])
                except UnavailableError as error:
                    missing.append(Missing(backend, name, str(error)))
                else:
                    peaks = {size: memory.of(partial(run, images[:size])) for size in sizes}
                    ways[backend, name] = _Way(run, peaks)
                stage.advance(1)
    rows: list[Row] = []
    batches = []
    for size in sizes:
        with progress.stage(f"batches of {size}"):
            times, count = _time(ways, images, size, settings, device)
            rows += _rows(settings.backends, ways, times, size, count)
            batches.append(_batch(networks, ways, images[:count], size, device))
    return Measured(tuple(batches), tuple(rows), tuple(missing))


@dataclass(frozen=True)
class _Way:
    run: Runner
    memory: Mapping[int, int | None]


_Times = Mapping[tuple[str, str], list[float]]


def _time(
    ways: Mapping[tuple[str, str], _Way],
    images: Tensor,
    size: int,
    settings: Settings,
    device: torch.device,
) -> tuple[_Times, int]:
    """Seconds of a round, by backend and network, and how many images it has."""
    if not ways:
        return {}, size
    most = min(math.ceil(_IMAGES / size), len(images) // size)
    if settings.rounds is None:
        tries = interleaved([partial(way.run, images[:size]) for way in ways.values()], 2, device=device)
        slowest = max(min(seconds) for seconds in tries)
        most = min(most, int(settings.seconds / _LEAST_ROUNDS / max(slowest, 1e-9)))
    count = size * max(1, most)
    parts = images[:count].split(size)
    seconds = interleaved(
        [partial(_run_all, way.run, parts) for way in ways.values()],
        settings.rounds or _LEAST_ROUNDS,
        1,
        seconds=None if settings.rounds else settings.seconds * len(ways),
        device=device,
    )
    return dict(zip(ways, seconds, strict=True)), count


def _run_all(run: Runner, parts: Sequence[Tensor]) -> None:
    for part in parts:
        run(part)


def _rows(
    backends: Sequence[str], ways: Mapping[tuple[str, str], _Way], times: _Times, size: int, count: int
) -> list[Row]:
    rows = []
    for backend in backends:
        found: dict[str, Figures] = {}
        for name in (ORIGINAL, RESULT):
            if (backend, name) in times:
                ms = Spread.of(times[backend, name]).scaled(1000 * size / count)
                memory = ways[backend, name].memory[size]
                found[name] = Figures(ms, 1000 * size / ms.median, memory)
        if found:
            both = len(found) == 2
            time = ratio(times[backend, RESULT], times[backend, ORIGINAL]) if both else None
            rows.append(Row(backend, size, found.get(ORIGINAL), found.get(RESULT), time))
    return rows


def _batch(
    networks: Mapping[str, Adapted],
    ways: Mapping[tuple[str, str], _Way],
    images: Tensor,
    size: int,
    device: torch.device,
) -> Batch:
    result = networks[RESULT]
    known = ways.get(("fast", RESULT))
    fast = known.run if known is not None else optimize(result, device)
    parts = images.split(size)
    spent = Spent.on(fast, parts)
    if ORIGINAL not in networks:
        return Batch(size, len(images), spent.macs, None, None)
    original = ways.get(("fast", ORIGINAL))
    base = Spent.on(optimize(networks[ORIGINAL], device) if original is None else original.run, parts).macs
    skips = not isinstance(fast, AdaptiveModel) or bool(fast.exits)
    split = None
    if skips and known is not None and original is not None:
        assert isinstance(fast, nn.Module)
        split = split_time(fast, original.run, parts, spent, base, device)
    return Batch(size, len(images), spent.macs, spent.macs / base, split)
