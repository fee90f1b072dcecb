"""Policies: how decisions become execution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from adaptify.errors import UsageError, did_you_mean


def _distance(logits: Tensor) -> Tensor:
    return logits.amax(1)


def _margin(logits: Tensor) -> Tensor:
    best, second = logits.topk(2, dim=1).values.unbind(1)
    return best - second


def _confidence(logits: Tensor) -> Tensor:
    return logits.softmax(1).amax(1)


def _entropy(logits: Tensor) -> Tensor:
    # Not 1 - H / log M: near 1, float32 could not tell sure samples from very sure ones.
    negative = (logits.softmax(1) * logits.log_softmax(1)).sum(1)
    return negative / math.log(max(logits.shape[1], 2))


SCORES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        # Largest distance to a decision boundary (d-gate, Algorithm 1).
        "distance": _distance,
        # Distance between the best class and the next: robust where all classes are far from their boundary.
        "margin": _margin,
        # Largest softmax probability, for exits trained with cross-entropy.
        "confidence": _confidence,
        # -H / log M: 0 where all probability is on one class, -1 where all of the M are as probable.
        "entropy": _entropy,
    }
)
"""How sure an exit is, by name: logits (N, M) -> score (N,), the higher the surer."""

GATE = "gate"
"""The score that is no function of the logits: the log-odds of a learned gate."""


@dataclass(frozen=True)
class ThresholdPolicy:
    """Leave at exit i when the exit's score reaches threshold i.

    Attributes:
        thresholds: One per exit; `math.inf` switches the exit off, and its gate is not computed.
        score: Key of `SCORES`, or `GATE`.
        temperatures: One per exit, which its logits are divided by before they are scored (Guo et al., 2017);
            None: all are 1. Predictions do not depend on it.
    """

    thresholds: tuple[float, ...]
    score: str = "distance"
    temperatures: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        known = (*SCORES, GATE)
        if self.score not in known:
            raise UsageError(
                f"unknown exit score '{self.score}'{did_you_mean(self.score, known)}",
                f"Use one of: {', '.join(known)}.",
            )
        if any(math.isnan(threshold) for threshold in self.thresholds):
            raise UsageError("a threshold is not a number", "Give a number, or inf for an exit never taken.")
        if self.temperatures is None:
            return
        if len(self.temperatures) != len(self.thresholds):
            raise UsageError(
                f"{len(self.temperatures)} temperatures for {len(self.thresholds)} exits",
                "Give one temperature per exit, in order.",
            )
        if not all(0 < value < math.inf for value in self.temperatures):
            raise UsageError(
                f"temperatures of {', '.join(map(str, self.temperatures))}",
                "Give positive numbers: 1 leaves the logits as they are.",
            )

    def enabled(self, index: int) -> bool:
        """Whether any sample can leave at exit `index`."""
        return self.thresholds[index] < math.inf

    def rate(self, index: int, logits: Tensor) -> Tensor:
        """How sure exit `index` is: logits (N, M) -> score (N,); NaN where logits do not tell (`GATE`).

        The output is the exit behind the last one; it has no temperature.
        """
        if self.score == GATE:
            return torch.full((len(logits),), math.nan, dtype=logits.dtype, device=logits.device)
        if self.temperatures is not None and index < len(self.temperatures):
            logits = logits / self.temperatures[index]
        return SCORES[self.score](logits)

    def leaves(self, index: int, scores: Tensor) -> Tensor:
        """Which samples leave at exit `index`: scores (N,) -> bool (N,)."""
        return scores >= self.thresholds[index]

    def to_json(self) -> dict[str, Any]:
        """The policy as JSON; an exit never taken has the threshold null."""
        value: dict[str, Any] = {
            "kind": "threshold",
            "score": self.score,
            "thresholds": [value if math.isfinite(value) else None for value in self.thresholds],
        }
        return value if self.temperatures is None else value | {"temperatures": list(self.temperatures)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ThresholdPolicy:
        """Inverse of `to_json`; reads policies without temperatures too."""
        thresholds = tuple(math.inf if item is None else float(item) for item in value["thresholds"])
        temperatures = value.get("temperatures")
        return cls(
            thresholds, str(value["score"]), None if temperatures is None else tuple(map(float, temperatures))
        )


ALWAYS = float(torch.finfo(torch.float32).min)
"""The threshold that every score reaches. A finite one, as JSON knows no other."""


def leave_at(index: int, exits: int, score: str = "confidence") -> ThresholdPolicy:
    """The policy of anytime prediction: every sample leaves at exit `index`, or at the output (`exits`).

    Args:
        index: The exit, from 0.
        exits: Number of exits of the network, without the output.
        score: As of `ThresholdPolicy`; it decides nothing here.

    Raises:
        UsageError: There is no such exit.
    """
    if not 0 <= index <= exits:
        raise UsageError(f"there is no exit {index} among {exits}", f"Give 0 to {exits}, the output.")
    return ThresholdPolicy(tuple(ALWAYS if item == index else math.inf for item in range(exits)), score)


def never_leave(exits: int, score: str = "distance") -> ThresholdPolicy:
    """The policy under which every sample runs through the whole network."""
    return ThresholdPolicy((math.inf,) * exits, score)
