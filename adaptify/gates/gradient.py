"""An operation that changes nothing but the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * context.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return `x` (any shape) as it is; the gradient that comes back through it is `factor` times as large.

    Gradient rescaling in networks with exits (Li et al., 2019; BoostNet, Fig. 2) is made of these.
    """
    scaled: Tensor = _ScaleGradient.apply(x, factor)
    return scaled
