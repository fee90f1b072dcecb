"""Temperature scaling: probabilities that mean what they say (Guo, Pleiss, Sun and Weinberger, 2017)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Temperatures are looked for between these: beyond them, all classes are alike or one has everything.
_RANGE = (1 / 64, 64.0)
# Of the logarithm of the temperature; a golden section shortens the range to 0.618 of it at a time.
_PRECISION = 1e-4


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T at which the likelihood of labels under softmax(logits / T) is largest.

    The negative log-likelihood is convex in 1 / T, so there is one minimum, which a golden section finds.

    Args:
        logits: (N, M) on held-out samples.
        labels: (N,) int64.
    """
    logits = logits.double()

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits * math.exp(-log_temperature), labels))

    golden = (math.sqrt(5) - 1) / 2
    low, high = (math.log(limit) for limit in _RANGE)
    inner = [high - golden * (high - low), low + golden * (high - low)]
    losses = [loss(point) for point in inner]
    with torch.no_grad():
        while high - low > _PRECISION:
            if losses[0] < losses[1]:
                high, inner[1], losses[1] = inner[1], inner[0], losses[0]
                inner[0] = high - golden * (high - low)
                losses[0] = loss(inner[0])
            else:
                low, inner[0], losses[0] = inner[0], inner[1], losses[1]
                inner[1] = low + golden * (high - low)
                losses[1] = loss(inner[1])
    return math.exp((low + high) / 2)
