"""Losses of linear gates, with their slopes in closed form: no graph is recorded for a linear model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor


def hinge_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """One-vs-rest hinge loss (the d-gate paper, eq. 1), averaged over samples and summed over classes.

    sum_c max(0, 1 - y_c d_c), with y_c = +1 for the label's class and -1 for every other.

    Args:
        scores: d, (N, M).
        labels: (N,) int64.
    """
    signs = torch.full_like(scores, -1.0).scatter_(1, labels.unsqueeze(1), 1.0)
    return (1 - signs * scores).clamp(min=0).sum(dim=1).mean()


def hinge_slope(scores: Tensor, labels: Tensor) -> Tensor:
    """Subgradient (N, M) of each sample's hinge loss: -y_c where y_c d_c < 1, else 0 (eq. 2)."""
    column = labels.unsqueeze(1)
    slope = (scores > -1).to(scores.dtype)
    return slope.scatter_(1, column, -(scores.gather(1, column) < 1).to(scores.dtype))


def cross_entropy_slope(scores: Tensor, labels: Tensor) -> Tensor:
    """Gradient (N, M) of each sample's cross-entropy: softmax(d) - one_hot(label)."""
    column = labels.unsqueeze(1)
    return scores.softmax(dim=1).scatter_add_(1, column, scores.new_full(column.shape, -1.0))


@dataclass(frozen=True)
class LinearLoss:
    """A loss of scores (N, M) and labels (N,).

    Attributes:
        value: The mean over samples, a scalar.
        slope: (N, M) derivative of each sample's own loss by its scores.
    """

    value: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]


LOSSES: Mapping[str, LinearLoss] = MappingProxyType(
    {
        "hinge": LinearLoss(hinge_loss, hinge_slope),
        "cross_entropy": LinearLoss(F.cross_entropy, cross_entropy_slope),
    }
)
