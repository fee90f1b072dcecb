"""How gates decide at inference (Herrmann et al., section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from adaptify.errors import UsageError

Mode = Literal["threshold", "stochastic", "always_on"]


@dataclass(frozen=True)
class GatePolicy:
    """Turns the log-odds of gates into decisions.

    Attributes:
        mode: `threshold`: open where the probability of being open exceeds `tau`; `stochastic`: drawn with
            that probability, anew for every batch; `always_on`: open.
        tau: The threshold, in [0, 1].
        runs: Networks of this many draws are averaged (an ensemble); 1 for the modes that draw nothing.
    """

    mode: Mode = "threshold"
    tau: float = 0.5
    runs: int = 1

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            modes = ", ".join(get_args(Mode))
            raise UsageError(f"gates do not decide by '{self.mode}'", f"Use one of: {modes}.")
        if not 0 <= self.tau <= 1:
            raise UsageError(
                f"a gate threshold of {self.tau} is no probability", "Give a number from 0 to 1."
            )
        if self.runs < 1 or (self.runs > 1 and self.mode != "stochastic"):
            raise UsageError(
                f"{self.runs} runs of {self.mode} gates make no ensemble",
                "Ensembles are of stochastic gates.",
            )

    def decide(self, odds: Tensor) -> Tensor:
        """Log-odds of any shape -> gates 0 or 1 of the same shape and type."""
        if self.mode == "always_on":
            return torch.ones_like(odds)
        if self.mode == "stochastic":
            return torch.bernoulli(odds.sigmoid())
        return (odds > _limit(self.tau)).to(odds)

    def to_json(self) -> dict[str, Any]:
        """The policy as JSON."""
        return {"kind": "gates", "mode": self.mode, "tau": self.tau, "runs": self.runs}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GatePolicy:
        """Inverse of `to_json`."""
        return cls(value["mode"], float(value["tau"]), int(value["runs"]))


def _limit(tau: float) -> float:
    if tau in (0.0, 1.0):
        return -math.inf if tau == 0 else math.inf
    return math.log(tau) - math.log1p(-tau)
