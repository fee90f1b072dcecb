"""Taking the statistics of BatchNorm anew, for weights that are not those they were collected with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adaptify.data import Split
from adaptify.parallel import group
from adaptify.progress import SILENT, Progress
from adaptify.training.options import LoopOptions
from adaptify.training.spread import spread

# The larger a batch, the nearer its variance to that of the data; without gradients there is room.
_LARGE_BATCH = 256


def normalisations(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm modules of `model` that keep statistics."""
    return [
        module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats
    ]


@torch.no_grad()
def recalibrate(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    forward: Callable[[Tensor], Any] | None = None,
    total: int | None = None,
    progress: Progress = SILENT,
) -> None:
    """Replace the running statistics of BatchNorm by their mean over `batches`; the weights stay.

    Only the normalisations are in training mode: the statistics are those of the network as it will
    run, without dropout and with gates that decide as they will. The mean is cumulative, each batch
    counting the same, so batches should be large and of one size. Leaves `model` in evaluation mode.

    Args:
        model: Any network.
        batches: Images (B, C, H, W) on the device of `model`; with none, the statistics stay.
        forward: How `model` is run. What it does not reach has no statistics afterwards: give it for a
            network that leaves parts out in evaluation.
        total: How many batches there are, for `progress`.
        progress: Told of every batch.
    """
    model.eval()
    run = forward or model
    modules = normalisations(model)
    momenta = [module.momentum for module in modules]
    seen = 0
    try:
        with progress.stage("recalibrate BatchNorm", total=total) as stage:
            for images in batches:
                if seen == 0:
                    for module in modules:
                        module.reset_running_stats()
                        module.momentum = None  # a cumulative mean
                        module.train()
                run(images)
                seen += 1
                stage.advance()
    finally:
        for module, momentum in zip(modules, momenta, strict=True):
            module.momentum = momentum
        model.eval()


def recalibrate_on(
    model: nn.Module,
    split: Split,
    options: LoopOptions,
    *,
    device: torch.device | str,
    seed: int,
    forward: Callable[[Tensor], Any] | None = None,
    most: int = _LARGE_BATCH,
    progress: Progress = SILENT,
) -> None:
    """`recalibrate` with images as they are in training: `options.recalibrate` batches, at most one pass.

    Does nothing for a network without BatchNorm, or if `options` ask for no batches. Batches are large, but
    not larger than `most` images, or than what is trained on at a time.
    """
    fits = max(most, -(-options.batch_size // options.micro_batches))
    size = min(max(options.batch_size, _LARGE_BATCH), fits, len(split))
    size -= size % group.size()
    count = min(options.recalibrate, len(split) // size)
    if count == 0 or not normalisations(model):
        return
    batches = split.batches(
        size,
        augment=options.augment,
        shuffle=True,
        seed=seed,
        device=device,
        drop_last=True,
        take=group.own_rows,
    )
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    images = (images.contiguous(memory_format=layout) for images, _ in itertools.islice(batches, count))
    recalibrate(model, images, forward=spread(forward or model), total=count, progress=progress)
