"""What accuracy a network with gates reaches at what cost, and the choice of one point of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptify.errors import ModelError, TargetError, UsageError

# Sums of float64 shares and means differ in their last bits; a target is not missed by those.
_TOLERANCE = 1e-9

_DAMAGED = "The file that holds it is damaged, or no version of adaptify wrote it: make the run again."


@dataclass(frozen=True)
class OperatingPoint:
    """One vector of thresholds and what it gave on the samples it was evaluated on.

    Attributes:
        thresholds: One threshold per exit, in the order of execution; `math.inf` never exits. Gates that
            close parts of the network have one threshold for all of them.
        accuracy: Top-1 accuracy, 0 to 1.
        macs: Mean MACs per sample, gates included.
        exit_shares: Share of the samples that left at each exit, and (last) at the output; empty for a
            network without exits.
    """

    thresholds: tuple[float, ...]
    accuracy: float
    macs: float
    exit_shares: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON object; a threshold that never exits is `null`."""
        return {
            "thresholds": [None if math.isinf(t) else t for t in self.thresholds],
            "accuracy": self.accuracy,
            "macs": self.macs,
            "exit_shares": list(self.exit_shares),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> OperatingPoint:
        """The inverse of `to_json`.

        Raises:
            ModelError: A field is missing or is not a number.
        """
        try:
            return cls(
                thresholds=tuple(math.inf if t is None else float(t) for t in value["thresholds"]),
                accuracy=float(value["accuracy"]),
                macs=float(value["macs"]),
                exit_shares=tuple(float(share) for share in value["exit_shares"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"not an operating point: {value!r} ({error!r})", _DAMAGED) from error


@dataclass(frozen=True)
class Frontier:
    """The accuracy / mean MACs frontier of a network with gates, on the calibration samples.

    Attributes:
        points: Ascending in MACs and in accuracy. One point is always there, and only it may be less
            accurate than a cheaper one: the last one, which never exits early; of gates, the one that they
            were trained for.
        base_accuracy: Accuracy of the network without gates, 0 to 1.
        base_macs: MACs per sample of the network without gates.
        policy: The policy whose thresholds those of a point replace, as JSON; None in older files, where it
            is that of the plan.
    """

    points: tuple[OperatingPoint, ...]
    base_accuracy: float
    base_macs: float
    policy: Mapping[str, Any] | None = None

    def choose(self, *, max_drop: float | None = None, max_macs: float | None = None) -> OperatingPoint:
        """Pick the point that serves a request best.

        Args:
            max_drop: Allowed loss of top-1 accuracy in points (0.5 is 93.0% to 92.5%): the
                cheapest point within it is taken.
            max_macs: Allowed mean MACs as a fraction of `base_macs`: the most accurate point
                within it is taken. With both, the choice of `max_drop` must also meet `max_macs`.

        Raises:
            UsageError: Neither is given, or a value makes no sense.
            TargetError: No point serves the request; the message names the nearest.
        """
        if max_drop is None and max_macs is None:
            raise UsageError("no target to choose thresholds by", "Give max_drop, max_macs or both.")
        points = self.points
        if max_macs is not None:
            if not 0 < max_macs <= 2:
                raise UsageError(
                    f"max_macs is {max_macs}, not a fraction of the network's MACs",
                    "Give the fraction to keep: 0.6 keeps 60%.",
                )
            points = tuple(p for p in points if p.macs <= (max_macs + _TOLERANCE) * self.base_macs)
            if not points:
                nearest = self.points[0]
                raise TargetError(
                    f"no thresholds bring the mean MACs down to {max_macs:.1%} of the network's",
                    f"The cheapest point keeps {self._describe(nearest)}. "
                    "Ask for more MACs, put an exit earlier in the network, or train gates to save more.",
                )
        if max_drop is None:
            return max(points, key=lambda p: (p.accuracy, -p.macs))
        if not math.isfinite(max_drop):
            raise UsageError(
                f"max_drop is {max_drop}, not a number of points", "0.5 lets 93.0% become 92.5%."
            )
        lowest = self.base_accuracy - max_drop / 100 - _TOLERANCE
        accurate = [p for p in points if p.accuracy >= lowest]
        if not accurate:
            nearest = max(points, key=lambda p: (p.accuracy, -p.macs))
            within = "" if max_macs is None else f" within {max_macs:.1%} of the MACs"
            raise TargetError(
                f"no thresholds keep the drop in accuracy at or below {max_drop:g} points{within}",
                f"The nearest point keeps {self._describe(nearest)}. Ask for less, or train better gates.",
            )
        return min(accurate, key=lambda p: (p.macs, -p.accuracy))

    def _describe(self, point: OperatingPoint) -> str:
        drop = 100 * (self.base_accuracy - point.accuracy)
        change = f"a drop of {drop:.2f}" if drop > 0 else f"a gain of {-drop:.2f}"
        return f"{point.macs / self.base_macs:.1%} of the MACs at {change} points"

    def to_json(self) -> dict[str, Any]:
        """A JSON object, to be embedded in a versioned file."""
        return {
            "base_accuracy": self.base_accuracy,
            "base_macs": self.base_macs,
            "policy": None if self.policy is None else dict(self.policy),
            "points": [point.to_json() for point in self.points],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Frontier:
        """The inverse of `to_json`.

        Raises:
            ModelError: A field is missing or has the wrong type.
        """
        try:
            points = tuple(OperatingPoint.from_json(point) for point in value["points"])
            return cls(points, float(value["base_accuracy"]), float(value["base_macs"]), value.get("policy"))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"not a frontier: {error!r}", _DAMAGED) from error
