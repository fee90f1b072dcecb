"""Making networks that spend less: `retrofit`, `prune`, `place`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from adaptify.api.inputs import AnyModel, Images, open_model, request_of, settings_of
from adaptify.api.run import TEMPORARY, Run, refuse_session, refuse_unnamed
from adaptify.assembly import Adapted
from adaptify.data.loaders import Batches
from adaptify.errors import TargetError
from adaptify.models.session import keep
from adaptify.pipeline import prune as pruning
from adaptify.pipeline import retrofit as retrofitting
from adaptify.pipeline.prepare import Network, plan_for
from adaptify.progress import SILENT, Progress
from adaptify.recipe import CalibrateSection, Recipe


def retrofit(
    model: AnyModel,
    *,
    method: str | None = None,
    train: Batches | None = None,
    holdout: Batches | None = None,
    test: Batches | None = None,
    data: str | None = None,
    input_shape: tuple[int, int, int] | None = None,
    max_drop: float | None = None,
    budget: float | None = None,
    confidence: float | None = None,
    thresholds: Sequence[float | None] | None = None,
    recipe: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    arch: str | None = None,
    arch_kwargs: Mapping[str, Any] | None = None,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Run:
    """Put gates into a pretrained network and train them, as `adaptify retrofit` does.

    The network that was given stays as it is. What comes back was checked: it computes what it would compute
    without skipping, and it was measured on the test images after it was written and loaded again.

    Args:
        model: An `nn.Module` that maps (N, C, H, W) to logits (N, M); or what `prune` or `load` gave; or a
            file, a run folder, or the name of an architecture.
        method: `dgate`, `boostnet`, `gumbel`, ...; `dgate` unless the recipe says otherwise.
        train: Images (B, C, H, W) as the network takes them, with labels (B,): a `DataLoader`, a data set, or
            batches. Whatever augments them does it here too.
        holdout: Images to choose thresholds on; None: a tenth of the training images. Nothing random in them.
        test: Images to report on. Nothing random in them.
        data: A data set by name, in place of the three: a folder, `digits`, `cifar10:FOLDER`.
        input_shape: (C, H, W); None: that of the first image.
        max_drop: Points of top-1 accuracy that may be lost (0.5 is half a percent of the images).
        budget: Fraction of the MACs that may be kept; or, from 1,000 on, MACs for an image.
        confidence: Probability with which `max_drop` holds for new images.
        thresholds: One for each exit, by hand; None in it: an exit that is never taken.
        recipe: A YAML file, or the name of a recipe that comes with adaptify.
        settings: Any other setting of a recipe: `{"train.epochs": 5, "gates.sites": ["layer1"]}`.
        arch: What builds the module (`package.module:callable`, `torchvision:resnet50`), so that the result
            can be written to a file. Checked against the module.
        arch_kwargs: Arguments for it, JSON values.
        output: The run folder; None: a temporary one, which goes with the `Run`.
        force: Replace `output` if it is there.
        progress: Told how far the work is.

    Returns:
        The run: `.model`, `.report`, `.save(path)`.

    Raises:
        AdaptifyError: As `adaptify retrofit` does, with what to do about it.
    """
    images = Images(train=train, holdout=holdout, test=test, data=data, input_shape=input_shape)
    request = request_of(max_drop, budget, confidence, thresholds)
    options = CalibrateSection.settings(request) if request else {}
    resolved = settings_of(method, model, images, recipe=recipe, settings=settings, options=options)
    network = _opened(model, images, resolved, arch, arch_kwargs, output)
    opened = images.open(resolved, network, ("train", "test"))
    with _folder(output) as path:
        done = retrofitting.retrofit(
            resolved, output=path, force=force, network=network, data=opened, progress=progress
        )
    return Run(done.folder, done.report, opened)


def prune(
    model: AnyModel,
    *,
    target: float | None = None,
    method: str | None = None,
    train: Batches | None = None,
    holdout: Batches | None = None,
    test: Batches | None = None,
    data: str | None = None,
    input_shape: tuple[int, int, int] | None = None,
    finetune: int | None = None,
    round_to: int | None = None,
    recipe: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    arch: str | None = None,
    arch_kwargs: Mapping[str, Any] | None = None,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Run:
    """Take out of a network what it can do without, as `adaptify prune` does: layers become smaller.

    Args:
        model: As for `retrofit`.
        target: Fraction of the MACs that is kept; None for a network with gates: what they leave.
        method: `importance` (the channels that seem to matter least) or one that learns what to remove, as
            `gumbel`; `importance` unless the recipe says otherwise.
        train: As for `retrofit`; to learn or judge on, for `finetune`, and for BatchNorm's statistics.
        holdout: As for `retrofit`.
        test: Images to report on; without any, accuracy is not measured.
        data: A data set by name, in place of the three.
        input_shape: (C, H, W); None: that of the first image.
        finetune: Epochs of training after channels were removed.
        round_to: Multiple of channels to keep where layers are large enough; 16 unless given.
        recipe: As for `retrofit`.
        settings: As for `retrofit`.
        arch: As for `retrofit`.
        arch_kwargs: As for `retrofit`.
        output: As for `retrofit`.
        force: As for `retrofit`.
        progress: As for `retrofit`.

    Raises:
        TargetError: There is nothing to remove, or the target cannot be met.
        AdaptifyError: As `adaptify prune` does, with what to do about it.
    """
    images = Images(train=train, holdout=holdout, test=test, data=data, input_shape=input_shape)
    given = {"prune.target": target, "prune.finetune": finetune, "prune.round_to": round_to}
    options = {key: value for key, value in given.items() if value is not None}
    method = method or ("importance" if recipe is None else None)
    resolved = settings_of(method, model, images, recipe=recipe, settings=settings, options=options)
    if target is not None and hasattr(resolved.train, "target"):
        options["train.target"] = target  # what learns what to remove learns to meet the target
        resolved = settings_of(method, model, images, recipe=recipe, settings=settings, options=options)
    network = _opened(model, images, resolved, arch, arch_kwargs, output)
    parts = pruning.parts_needed(resolved, network.gated)
    needed = tuple(part for part in parts if part != "holdout")
    opened = images.open(resolved, network, needed)
    with _folder(output) as path:
        done = pruning.prune(
            resolved, output=path, force=force, network=network, data=opened, progress=progress
        )
    if done is None:
        raise TargetError(
            "there is nothing to remove: each block is run by some of the held-out images",
            "Train the gates towards less: adaptify.retrofit(run, settings={'train.target': ...}).",
        )
    return Run(done.folder, done.report, opened)


def place(
    model: nn.Module,
    *,
    method: str,
    input_shape: tuple[int, int, int],
    settings: Mapping[str, Any] | None = None,
    arch: str | None = None,
    arch_kwargs: Mapping[str, Any] | None = None,
) -> Adapted:
    """Put untrained gates into a copy of a network, for a training loop of your own.

    In training mode the network returns what losses are made of: `Everything` (logits of the output and of
    every exit) for methods with exits, `Decisions` (logits, gates) for gates that close channels or blocks.

    Args:
        model: Maps (N, C, H, W) to logits (N, M).
        method: Whose gates.
        input_shape: (C, H, W).
        settings: Settings of the recipe's section `gates`: `{"gates.sites": ["layer1"]}`.
        arch: What builds the module, so that the result can be saved; see `retrofit`.
        arch_kwargs: Arguments for it.

    Returns:
        An `AdaptiveModel` or a `GatedModel`, in evaluation mode.

    Raises:
        UsageError, ModelError: The network has no place for such gates.
    """
    images = Images(input_shape=input_shape)
    recipe = settings_of(method, model, images, settings=settings)
    network = open_model(model, images, recipe, arch=arch, arch_kwargs=arch_kwargs)
    found = retrofitting.preview(recipe, network)
    found.model.plan = plan_for(recipe, network, found.steps)
    keep(network.architecture.name, found.model)
    return found.model


def _opened(
    model: AnyModel,
    images: Images,
    recipe: Recipe,
    arch: str | None,
    arch_kwargs: Mapping[str, Any] | None,
    output: str | os.PathLike[str] | None,
) -> Network:
    if output is not None:  # found out after hours of training, this would be a pity
        if isinstance(model, Run):
            refuse_session(model.model)
        elif isinstance(model, Adapted):
            refuse_session(model)
        elif isinstance(model, nn.Module) and arch is None:
            refuse_unnamed()
    return open_model(model, images, recipe, arch=arch, arch_kwargs=arch_kwargs)


@contextmanager
def _folder(output: str | os.PathLike[str] | None) -> Iterator[Path]:
    """The run folder to make; a temporary one goes if nothing comes of it."""
    if output is not None:
        yield Path(output)
        return
    parent = Path(tempfile.mkdtemp(prefix=TEMPORARY))
    try:
        yield parent / "run"
    except BaseException:
        shutil.rmtree(parent, ignore_errors=True)
        raise
