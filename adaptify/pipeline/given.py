"""What a caller holds already, in place of a checkpoint and a data set: a module, and loaders."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from adaptify.data import Data, check_labels
from adaptify.data.holdout import stratified_split
from adaptify.data.identity import check_apart
from adaptify.data.loaders import LoaderSource
from adaptify.errors import ModelError, UsageError
from adaptify.graph.agreement import check_agreement
from adaptify.graph.copying import share_copy
from adaptify.graph.trace import trace
from adaptify.input_spec import InputSpec
from adaptify.models.registry import Architecture, resolve
from adaptify.models.session import hold, keep
from adaptify.pipeline.prepare import Network, traced_network
from adaptify.plan import Source


def open_module(
    module: nn.Module,
    input: InputSpec,
    *,
    arch: str | None = None,
    arch_kwargs: Mapping[str, Any] | None = None,
) -> Network:
    """Trace a module; it is copied, and stays as it is.

    Args:
        module: Maps images (N, C, H, W) to logits (N, M).
        input: Shape of one image.
        arch: Name of what builds it (`package.module:callable`, `torchvision:NAME`), so that what comes of it
            can be loaded in another process; None: only this one can build it, from a copy.
        arch_kwargs: Arguments for its builder.

    Raises:
        UsageError: There is no such architecture.
        ModelError: It cannot be traced, or `arch` builds something else.
    """
    module = getattr(module, "_orig_mod", module)  # of torch.compile
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        module = module.module
    own = share_copy(module, lambda tensor: tensor.detach().cpu().clone()).eval()
    if arch is None:
        architecture = Architecture(hold(own), {}, input)
    else:
        architecture = replace(resolve(arch, arch_kwargs or {}), input=input)
        _check_same(own, architecture)
    source = Source(checkpoint=f"{type(module).__name__} (a module)", sha256=_digest(own))
    traced = trace(own, input.shape)
    check_agreement(own, traced)
    network = traced_network(traced, architecture, source, ())
    keep(architecture.name, network.traced.root)
    return network


def open_loaders(
    *,
    train: LoaderSource | None = None,
    holdout: LoaderSource | None = None,
    test: LoaderSource | None = None,
    input: InputSpec,
    classes: int,
    share: float = 0.1,
    seed: int = 0,
) -> Data:
    """Put loaders together as a data set.

    Args:
        train: Images to train on.
        holdout: Images to choose thresholds on; None: a share of the training images, stratified by class.
        test: Images to report on.
        input: What the network takes.
        classes: Number of outputs of the network.
        share: Of the training images, where nothing is held out.
        seed: Of that choice.

    Raises:
        UsageError: A loader yields something else, there is none, or labels are not those of the network.
    """
    given = {"train": train, "holdout": holdout, "test": test}
    sources = {name: source for name, source in given.items() if source is not None}
    if not sources:
        raise UsageError("no images were given", "Give loaders: train=, holdout= and test=.")
    for name, source in sources.items():
        highest = int(source.labels.max())
        if highest >= classes or int(source.labels.min()) < 0:
            raise UsageError(
                f"{name} has images of class {highest}, and the network tells {classes} classes apart",
                f"Labels are numbers from 0 to {classes - 1}.",
            )
    first = next(iter(sources.values()))
    nothing = torch.empty(0, dtype=torch.int64)
    rows = {name: torch.arange(len(source.labels)) for name, source in sources.items()}
    notes: tuple[str, ...] = ()
    if "holdout" not in sources and "train" in sources:
        sources["holdout"] = sources["train"]
        rows["train"], rows["holdout"] = stratified_split(sources["train"].labels, share, seed)
        notes = (f"{share:.0%} of the training images are held out, as the training loader yields them",)
    trained, held, tested = (
        sources.get(name, first).take(rows.get(name, nothing), input) for name in ("train", "holdout", "test")
    )
    names = first.classes or tuple(map(str, range(classes)))
    data = Data(
        name=type(first.loader.dataset).__name__,
        train=trained,
        holdout=held,
        test=tested,
        classes=names,
        input=input,
        notes=notes,
    )
    check_labels(data, classes)
    apart = check_apart(held, tested) if len(held) and len(tested) else ()
    return replace(data, notes=(*notes, *apart))


def plain_input(shape: tuple[int, int, int]) -> InputSpec:
    """An input of `shape` (C, H, W) that is normalised already."""
    channels, height, width = shape
    return InputSpec(channels, height, width, mean=(0.0,) * channels, std=(1.0,) * channels)


def _check_same(module: nn.Module, architecture: Architecture) -> None:
    built = architecture.build().eval()
    try:
        built.load_state_dict(module.state_dict())
    except RuntimeError as error:
        raise ModelError(
            f"{architecture.name} is another network: {str(error).splitlines()[-1].strip()}",
            "Name what builds this one: arch='package.module:callable', with its arguments in arch_kwargs.",
        ) from error
    images = torch.randn(2, *architecture.input.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs = module(images), built(images)
    same = not isinstance(ours, Tensor) or (
        isinstance(theirs, Tensor) and torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    )
    if not same:
        raise ModelError(
            f"{architecture.name} has the same tensors, and computes something else",
            "Give arch_kwargs that make it the same, or leave arch out.",
        )


def _digest(module: nn.Module) -> str:
    """SHA-256 over the tensors of a module and their names."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(name.encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
