"""Policies: how decisions become execution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor

from adaptify.errors import UsageError, did_you_mean


def _distance(logits: Tensor) -> Tensor:
    return logits.amax(1)


def _margin(logits: Tensor) -> Tensor:
    best, second = logits.topk(2, dim=1).values.unbind(1)
    return best - second


def _confidence(logits: Tensor) -> Tensor:
    return logits.softmax(1).amax(1)


SCORES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        # Largest distance to a decision boundary (d-gate, Algorithm 1).
        "distance": _distance,
        # Distance between the best class and the next: robust where all classes are far from their boundary.
        "margin": _margin,
        # Largest softmax probability, for exits trained with cross-entropy.
        "confidence": _confidence,
    }
)
"""How sure an exit is, by name: logits (N, M) -> score (N,)."""


@dataclass(frozen=True)
class ThresholdPolicy:
    """Leave at exit i when the exit's score reaches threshold i.

    Attributes:
        thresholds: One per exit; `math.inf` switches the exit off, and its gate is not computed.
        score: Key of `SCORES`.
    """

    thresholds: tuple[float, ...]
    score: str = "distance"

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise UsageError(
                f"unknown exit score '{self.score}'{did_you_mean(self.score, SCORES)}",
                f"Use one of: {', '.join(SCORES)}.",
            )
        if any(math.isnan(threshold) for threshold in self.thresholds):
            raise UsageError("a threshold is not a number", "Give a number, or inf for an exit never taken.")

    def enabled(self, index: int) -> bool:
        """Whether any sample can leave at exit `index`."""
        return self.thresholds[index] < math.inf

    def leaves(self, index: int, logits: Tensor) -> Tensor:
        """Which samples leave at exit `index`: logits (N, M) -> bool (N,)."""
        return SCORES[self.score](logits) >= self.thresholds[index]

    def to_json(self) -> dict[str, Any]:
        """The policy as JSON; an exit never taken has the threshold null."""
        return {
            "kind": "threshold",
            "score": self.score,
            "thresholds": [value if math.isfinite(value) else None for value in self.thresholds],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ThresholdPolicy:
        """Inverse of `to_json`."""
        thresholds = tuple(math.inf if item is None else float(item) for item in value["thresholds"])
        return cls(thresholds, str(value["score"]))


def never_leave(exits: int, score: str = "distance") -> ThresholdPolicy:
    """The policy under which every sample runs through the whole network."""
    return ThresholdPolicy((math.inf,) * exits, score)
