"""How long a network takes beside what it was made of: a few seconds of measuring, at the end of a run.

`adaptify bench` measures longer, more forms, memory, and where the time goes.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptify import artifact
from adaptify.assembly import Adapted
from adaptify.bench.split import Spent
from adaptify.data import Split
from adaptify.environment import describe_environment
from adaptify.errors import AdaptifyError, UsageError
from adaptify.freeze import without_fixed_gates
from adaptify.models.registry import Architecture
from adaptify.parallel import group
from adaptify.pipeline import folder
from adaptify.pipeline.bench import as_it_came
from adaptify.pipeline.prepare import open_recipe_data
from adaptify.progress import SILENT, Progress
from adaptify.recipe import resolve
from adaptify.reports.html import write_html
from adaptify.reports.schema import BatchTime, Report, Speed, read_report, write_report
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.device import pick_device
from adaptify.runtime.optimize import optimize
from adaptify.runtime.skipping.model import SkippingModel
from adaptify.runtime.timing import interleaved, ratio

ROUNDS = 3

_SIZES = (1, 32)
_SECONDS = 1.5  # for each size, where that is enough for the fewest images
_FEWEST, _MOST = 6, 64  # images; how long one takes depends on what it is of

Fast = AdaptiveModel | SkippingModel


def with_speed(report: Report, speed: Speed) -> Report:
    """Return a report with what was measured; its headline tells the time of one image."""
    one = next((row for row in speed.batches if row.batch_size == 1), None)
    return report.model_copy(
        update={
            "speed": speed,
            "before": report.before.model_copy(update={"milliseconds": one.before if one else None}),
            "after": report.after.model_copy(update={"milliseconds": one.after if one else None}),
        }
    )


def measure_run(run: Path, *, trust_code: bool = False, progress: Progress = SILENT) -> Report:
    """Measure how long the network of a finished run takes on this machine, and put it into its report.

    What it was made of is built anew, with random weights: they take as long as trained ones.

    Raises:
        UsageError: The folder is no finished run.
        ModelError: The network cannot be loaded.
    """
    report = read_report(run / folder.REPORT)
    model = artifact.load(run / folder.MODEL, trust_code=trust_code)
    if model.plan is None:
        raise UsageError(f"{run} does not say what it was made of", "Make the run again.")
    architecture = Architecture.from_json(model.plan.architecture)
    images = None
    if report.data is not None:
        recipe = resolve(None, file=run / folder.RECIPE)
        try:
            images = open_recipe_data(recipe, architecture.input, model.num_classes, parts=["test"]).test
        except AdaptifyError as error:
            progress.note(f"random images: {error.message}")
    device = pick_device("auto")
    before = optimize(as_it_came(architecture), device)
    with progress.stage("time"):
        speed = measure_speed(before, fast_form_of(model, device), images, report.before.macs, device)
    named = report.data.name if report.data is not None and images is not None else None
    report = with_speed(report, speed.model_copy(update={"data": named}))
    with folder.changed_run(run) as work:
        write_report(report, work / folder.REPORT)
        write_html(report, work / folder.PAGE)
    return report


def fast_form_of(model: Adapted, device: torch.device) -> Fast:
    """Return a network as it would be run: without what gates close for all samples alike.

    Raises:
        ModelError: What gates close cannot be left out.
    """
    return optimize(without_fixed_gates(model), device)


@group.alone
@torch.inference_mode()
def measure_speed(
    before: Fast,
    after: Fast,
    split: Split | None,
    base_macs: int,
    device: torch.device,
    data: str | None = None,
) -> Speed:
    """Run two networks in turns on the same images.

    Args:
        before: The network as it came, in its fast form.
        after: What became of it, in its fast form.
        split: Where images are from; None: random values.
        base_macs: MACs of the network as it came, for one sample.
        device: Where both are.
        data: What the data set is called.
    """
    images = _images(before, split, device)
    rows: list[BatchTime] = []
    for size in _SIZES:
        batch = _enough(images, size)
        slowest = sum(min(own) for own in interleaved(_runs((before, after), batch), 1, 1, device=device))
        most = int(_SECONDS / (ROUNDS * slowest)) if slowest else _MOST
        if size > 1 and not most:
            break  # of a large network, one image says as much
        count = max(min(most, -(-_MOST // size)), 1 if size > 1 else _FEWEST)
        batches = _enough(images, size * count).split(size)
        rows.append(_row(before, after, batches, base_macs, device))
    environment: dict[str, Any] = describe_environment()
    on_gpu = device.type == "cuda"
    return Speed(
        machine=torch.cuda.get_device_name(device) if on_gpu else environment["cpu"]["model"],
        device=str(device),
        threads=torch.get_num_threads(),
        rounds=ROUNDS,
        data=data,
        batches=rows,
    )


def _row(
    before: Fast, after: Fast, batches: Sequence[Tensor], base_macs: int, device: torch.device
) -> BatchTime:
    runs = [run for batch in batches for run in _runs((before, after), batch)]
    times = [[1000 * seconds for seconds in own] for own in interleaved(runs, ROUNDS, 0, device=device)]
    # A mean of images, as some take more than others; the fastest round, as others can only be slowed down.
    was, now = (statistics.fmean(min(own) for own in times[first::2]) for first in (0, 1))
    turns = [[sum(own) for own in zip(*times[first::2], strict=True)] for first in (0, 1)]
    spread = ratio(turns[1], turns[0])
    return BatchTime(
        batch_size=len(batches[0]),
        images=sum(map(len, batches)),
        before=was,
        after=now,
        low=spread.low,
        high=spread.high,
        kept=Spent.on(after, batches).macs / base_macs,
    )


def _runs(models: Sequence[Fast], batch: Tensor) -> list[Any]:
    return [partial(model.run, batch) for model in models]


def _images(model: Fast, split: Split | None, device: torch.device) -> Tensor:
    if split is not None:
        images, _ = next(iter(split.batches(min(_MOST, len(split)), shuffle=True, device=device)))
        return images
    generator = torch.Generator().manual_seed(0)
    assert isinstance(model, AdaptiveModel)
    return torch.randn(_MOST, *model.traced.input_shape, generator=generator).to(device)


def _enough(images: Tensor, count: int) -> Tensor:
    """The first of the images, some of them twice where there are fewer."""
    return images.repeat(-(-count // len(images)), 1, 1, 1)[:count]
