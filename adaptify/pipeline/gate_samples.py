"""What gates that look at the sample make of the test samples: the `samples` of a report's gates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from adaptify.data import Data, Split
from adaptify.pipeline.examples import examples_part
from adaptify.runtime.gated import GatedModel
from adaptify.training.gate_records import GateRecords
from adaptify.training.gradients import block_gradients

_BINS = 30  # of the histogram of MACs
_SITES = 2  # whose channels are shown: those of the last blocks
_GATES = 50  # of each of them
_CLASSES = 24  # of them: those at both ends of what classes need
_IMAGES = 512  # from the training samples, for gradients
_BATCH = 64


def samples_part(
    model: GatedModel, found: GateRecords, data: Data, classes: Sequence[str], device: torch.device
) -> dict[str, Any]:
    """Return the `Samples` of a report.

    Args:
        model: The network, on `device`; its gates look at the sample.
        found: What they did to the test samples, by class.
        data: The data set: its test samples, and training samples for the gradients of blocks.
        classes: Names of the classes.
        device: Where gradients are computed.
    """
    kept = found.macs / model.cost.total
    by_use = _classes_by_use(kept, found.labels)
    macs = _histogram(found.macs)
    return {
        "macs": macs,
        "classes": [_class(found, kept, classes, row) for row in by_use],
        # Where all take the same, none is easier than the others.
        "examples": _examples(found, kept, data.test, classes) if macs is not None else {},
        "channels": _channels(model, found, classes, by_use),
        **_blocks(model, found, data.train, device),
    }


def _histogram(macs: Tensor) -> dict[str, Any] | None:
    low, high = float(macs.min()), float(macs.max())
    if low == high:
        return None
    return {"low": low, "high": high, "counts": torch.histc(macs, _BINS, low, high).long().tolist()}


def _classes_by_use(kept: Tensor, labels: Tensor) -> list[int]:
    """The classes that have samples, those that need the least compute first."""
    present = labels.unique().tolist()
    return sorted(present, key=lambda row: (float(kept[labels == row].mean()), row))


def _class(found: GateRecords, kept: Tensor, classes: Sequence[str], row: int) -> dict[str, Any]:
    own = found.labels == row
    return {
        "name": classes[row],
        "samples": int(own.sum()),
        "accuracy": float((found.predictions == found.labels)[own].double().mean()),
        "kept": float(kept[own].mean()),
    }


def _examples(found: GateRecords, kept: Tensor, images: Split, classes: Sequence[str]) -> dict[str, Any]:
    """Images by their MACs; of those that take the same, the network is surest of the easier one."""
    doubt = 1 - found.logits.double().softmax(1).amax(1)
    by_doubt = doubt.argsort(stable=True)
    easy = by_doubt[kept[by_doubt].argsort(stable=True)]
    return examples_part(
        images, classes, found.predictions, easy, easy.flip(0), lambda row: {"kept": float(kept[row])}
    )


def _channels(
    model: GatedModel, found: GateRecords, classes: Sequence[str], by_use: Sequence[int]
) -> list[dict[str, Any]]:
    assert found.opened_by_class is not None
    half = _CLASSES // 2
    rows = list(by_use) if len(by_use) <= _CLASSES else [*by_use[:half], *by_use[-half:]]
    counts = torch.bincount(found.labels, minlength=len(classes))[rows].double()
    parts = found.opened_by_class[rows].split([site.gates for site in model.sites], 1)
    by_site = [
        (site, part) for site, part in zip(model.sites, parts, strict=True) if site.position != "layer"
    ]
    return [
        {
            "name": site.name,
            "position": site.position,
            "gates": site.gates,
            "classes": [classes[row] for row in rows],
            "open": (part[:, :_GATES] / counts[:, None]).clamp(0, 1).tolist(),
        }
        for site, part in by_site[-_SITES:]
    ]


def _blocks(model: GatedModel, found: GateRecords, split: Split, device: torch.device) -> Mapping[str, Any]:
    """How often blocks run, beside the gradients on a few of the training samples, in random order."""
    shares = {
        site.block.name: share
        for site, share in zip(model.sites, found.site_open, strict=True)
        if site.position == "layer" and site.block is not None
    }
    if not shares:
        return {}
    batches = islice(split.batches(_BATCH, shuffle=True, device=device), math.ceil(_IMAGES / _BATCH))
    gradients = block_gradients(model, batches, device)
    return {
        "blocks": [
            {"name": name, "executed": min(max(share, 0.0), 1.0), "gradient": gradients[name]}
            for name, share in shares.items()
        ],
        "gradient_images": min(_IMAGES, len(split)),
    }
