"""How gates decide at inference, by what their networks say of a sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from adaptify.errors import ModelError, UsageError

Mode = Literal["threshold", "stochastic", "always_on"]


class Policy(Protocol):
    """Turns what the networks of gates say into gates."""

    @property
    def tau(self) -> float:
        """What is open by this or less is closed."""

    @property
    def runs(self) -> int:
        """How many runs of the network are averaged; 1 unless gates are drawn."""

    @property
    def draws(self) -> bool:
        """Whether gates are drawn, and differ from run to run."""

    def with_tau(self, tau: float) -> Policy:
        """The same with another threshold."""

    def variants(self) -> Mapping[str, Policy]:
        """Other ways for the same gates to decide, by name."""

    def decide(self, odds: Tensor) -> Tensor:
        """What the networks say, of any shape -> gates in [0, 1] of the same shape and type; 0 is closed."""

    def openness(self, odds: Tensor) -> Tensor:
        """How open gates are, in [0, 1], whatever becomes of them."""

    def to_json(self) -> dict[str, Any]:
        """The policy as JSON, with its kind."""


@dataclass(frozen=True)
class GatePolicy:
    """Turns the log-odds of gates into decisions (Herrmann et al., section 3.3).

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

    @property
    def draws(self) -> bool:
        """Whether gates are drawn."""
        return self.mode == "stochastic"

    def with_tau(self, tau: float) -> GatePolicy:
        """The same with another threshold."""
        return replace(self, tau=tau)

    def variants(self) -> Mapping[str, Policy]:
        """All gates open, and gates that are drawn."""
        return {"always-on": GatePolicy("always_on"), "stochastic": GatePolicy("stochastic")}

    def openness(self, odds: Tensor) -> Tensor:
        """The probability of being open."""
        return odds.sigmoid()

    def to_json(self) -> dict[str, Any]:
        """The policy as JSON."""
        return {"kind": "gates", "mode": self.mode, "tau": self.tau, "runs": self.runs}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GatePolicy:
        """Inverse of `to_json`."""
        return cls(value["mode"], float(value["tau"]), int(value["runs"]))


@dataclass(frozen=True)
class SaliencePolicy:
    """Saliences as they are: they scale what they do not close (Xia et al., eq. 5).

    Attributes:
        tau: What has a salience of this or less is closed; 0 in the paper. In [0, 1].
    """

    tau: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.tau <= 1:
            raise UsageError(f"a threshold of {self.tau} is no salience", "Give a number from 0 to 1.")

    @property
    def runs(self) -> int:
        """1: nothing is drawn."""
        return 1

    @property
    def draws(self) -> bool:
        """Nothing is drawn."""
        return False

    def with_tau(self, tau: float) -> SaliencePolicy:
        """The same with another threshold."""
        return replace(self, tau=tau)

    def variants(self) -> Mapping[str, Policy]:
        """None: with all saliences at 1 it is not the network that was trained."""
        return {}

    def decide(self, odds: Tensor) -> Tensor:
        """Raw saliences of any shape -> saliences in [0, 1] of the same shape and type."""
        salience = odds.clamp(0, 1)
        return salience * (salience > self.tau)

    def openness(self, odds: Tensor) -> Tensor:
        """The salience."""
        return odds.clamp(0, 1)

    def to_json(self) -> dict[str, Any]:
        """The policy as JSON."""
        return {"kind": "saliences", "tau": self.tau}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SaliencePolicy:
        """Inverse of `to_json`."""
        return cls(float(value["tau"]))


_KINDS: Mapping[str, type[GatePolicy] | type[SaliencePolicy]] = {
    "gates": GatePolicy,
    "saliences": SaliencePolicy,
}


def policy_from_json(value: Mapping[str, Any]) -> Policy:
    """Inverse of `Policy.to_json`.

    Raises:
        ModelError: It is no policy of gates.
    """
    kind = str(value.get("kind"))
    if kind not in _KINDS:
        raise ModelError(
            f"gates do not decide by a policy of kind '{kind}'",
            "The file is damaged, or comes from a newer adaptify.",
        )
    return _KINDS[kind].from_json(value)


def _limit(tau: float) -> float:
    if tau in (0.0, 1.0):
        return -math.inf if tau == 0 else math.inf
    return math.log(tau) - math.log1p(-tau)
