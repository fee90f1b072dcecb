"""Rounding with a gradient: straight-through estimators (Bengio et al., 2013; SGAD, section 3.1).

Rounding a probability p to 0 or 1 has no slope to learn from. An estimator takes another function's in its
place. All of those here rise by about 1 as p goes from 0 to 1, as rounding does; they differ in where.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

Estimator = Literal["identity", "sigmoid", "sinc"]

STEEPNESS = 10.0
"""k of the steep sigmoid. It rises from .007 to .993 between 0 and 1, as if it were a soft step there."""

SINC_AREA = 1.8519370519824662 / math.pi
"""The integral of sinc(2 (p - 1/2)) over [0, 1]: Si(pi) / pi, with Si the sine integral."""


def _identity(p: Tensor) -> Tensor:
    """Return 1: the slope of p itself."""
    return torch.ones_like(p)


def _sigmoid(p: Tensor) -> Tensor:
    """k s (1 - s), s = sigmoid(k (p - 1/2)): the slope of a step that is k times steeper than a sigmoid."""
    soft = torch.sigmoid(STEEPNESS * (p - 0.5))
    return STEEPNESS * soft * (1 - soft)


def _sinc(p: Tensor) -> Tensor:
    """sinc(2 (p - 1/2)) / (Si(pi) / pi), sinc(u) = sin(pi u) / (pi u).

    The lobe of a sinc around 0, stretched over [0, 1]: decisions near the threshold learn most, those made
    for good learn nothing, and none is pushed the wrong way, as the negative lobes further out would do.
    """
    return torch.sinc(2 * (p - 0.5)) / SINC_AREA


SLOPES: Mapping[Estimator, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"identity": _identity, "sigmoid": _sigmoid, "sinc": _sinc}
)
"""What each estimator takes for the derivative of rounding, as a function of the probability."""


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, probability: Tensor, estimator: Estimator) -> Tensor:
        context.save_for_backward(probability)
        context.estimator = estimator
        return (probability > 0.5).to(probability)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (probability,) = context.saved_tensors
        return gradient * SLOPES[context.estimator](probability), None


def round_through(probability: Tensor, estimator: Estimator = "sinc") -> Tensor:
    """Round probabilities to exactly 0 or 1, of the same shape and type; 1/2 is rounded down.

    Args:
        probability: p in [0, 1], of any shape.
        estimator: Whose slope the gradient has; a key of `SLOPES`.
    """
    rounded: Tensor = _Round.apply(probability, estimator)
    return rounded


class NoisyRounding:
    """Draws gates in training: noise on the log-odds, sigmoid, rounding (SGAD, section 3.1).

    The noise makes up for nothing but itself: to decide alike whatever it is, log-odds must grow beyond it.
    Where it grows during training, decisions saturate.

    Args:
        estimator: Of the gradient of rounding.
    """

    def __init__(self, estimator: Estimator = "sinc") -> None:
        self.estimator: Estimator = estimator
        # A tensor, since a compiled network would be compiled anew for every other number.
        self._scale = torch.zeros(())

    def set_noise(self, deviation: float) -> None:
        """Set the standard deviation of the noise, in units of log-odds."""
        self._scale.fill_(deviation)

    def __call__(self, odds: Tensor) -> Tensor:
        """Log-odds of any shape -> gates 0 or 1 of the same shape, with a gradient."""
        odds = odds.float()
        return round_through(torch.sigmoid(odds + self._scale * torch.randn_like(odds)), self.estimator)
