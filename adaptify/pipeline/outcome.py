"""What became of a network, beside what it was: of each class, and of its size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def size_of(network: nn.Module) -> dict[str, int]:
    """Number of parameters, and bytes of all tensors of the state dict."""
    tensors: list[Tensor] = list(network.state_dict().values())
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    }


def effects_part(
    classes: Sequence[str], labels: Tensor, before: Tensor | Sequence[float], after: Tensor
) -> list[dict[str, Any]]:
    """The `class_effects` of a report: of each class that has samples.

    Args:
        classes: Names of the classes.
        labels: (N,) int64, of the samples.
        before: (N,) int64, what the network as it came predicts; or its accuracy for each class that has
            samples, where that is all that is known.
        after: (N,) int64, what is predicted now.
    """
    samples = torch.bincount(labels, minlength=len(classes))
    present = [index for index, count in enumerate(samples.tolist()) if count]
    if isinstance(before, Tensor):
        before = _accuracies(labels, before, samples, present)
    now = _accuracies(labels, after, samples, present)
    return [
        {"name": classes[index], "samples": int(samples[index]), "before": was, "after": is_}
        for index, was, is_ in zip(present, before, now, strict=True)
    ]


def _accuracies(labels: Tensor, predictions: Tensor, samples: Tensor, present: Sequence[int]) -> list[float]:
    right = torch.bincount(labels[predictions == labels], minlength=len(samples))
    return [int(right[index]) / int(samples[index]) for index in present]
