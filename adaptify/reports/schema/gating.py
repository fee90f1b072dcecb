"""Learned gates: where they are, how sure they are, and what each way of deciding gives."""

# ruff: noqa: RUF012 (pydantic copies the defaults of fields)
from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from adaptify.reports.schema.part import Count, Fraction, Part
from adaptify.reports.schema.samples import Samples


class GateSite(Part):
    """A place in the network with gates.

    Attributes:
        name: Qualified name of the layer or block.
        position: What is gated there: `channels`, `input`, `output`, `shortcut` or `layer`.
        gates: Number of gates.
        channels: Number of channels that they gate.
        open: Mean share of open gates over the test samples, under the policy.
    """

    name: str
    position: str
    gates: Annotated[int, Field(ge=1)]
    channels: Count
    open: Fraction


class GateEpoch(Part):
    """How open the gates were after an epoch of training.

    Attributes:
        epoch: Its number, as in `Training.epochs`.
        open: Mean probability of being open over all gates.
        sites: Mean probability of each site's gates, in the order of `Gating.sites`.
    """

    epoch: int
    open: Fraction
    sites: list[Fraction]


class GateMode(Part):
    """One way for gates to decide, on the test samples.

    Attributes:
        name: `threshold` (open above tau), `always-on`, `stochastic` (drawn by their probabilities) or
            `ensemble` (mean of the predictions of several draws).
        tau: Threshold on the probabilities; `None` where there is none.
        runs: Number of draws; for `ensemble`, the members.
        accuracy: Top-1; mean over the runs.
        accuracy_std: Standard deviation over the runs.
        kept: MACs per sample as a fraction of the whole network's, gates included; mean over the runs.
        kept_std: Standard deviation over the runs.
    """

    name: str
    tau: float | None = None
    runs: int = 1
    accuracy: Fraction
    accuracy_std: float | None = None
    kept: float
    kept_std: float | None = None


class Gating(Part):
    """What the learned gates do.

    Attributes:
        kind: What gates say: how probable it is that they are open, or their salience, with which what they
            leave open is multiplied.
        data_dependent: Whether gates decide for each sample; otherwise the same for all samples.
        granularity: Whether a gate is for a whole layer or for a channel.
        tau: Threshold of the policy: a gate is open where its probability (or salience) is above it.
        histogram: Number of probabilities (or saliences) in equal bins over [0, 1].
        polarised: Share of them below 0.05 or above 0.95.
        sites: Where gates are, in the order of the network.
        activity: How open the gates were during training.
        modes: What each way of deciding gives.
        sweep: Mode `threshold` for several taus.
        gate_macs: MACs per sample of the gates themselves.
        samples: What they make of the test samples, where they decide for each; older reports have none.
    """

    kind: Literal["gates", "saliences"] = "gates"
    data_dependent: bool
    granularity: Literal["layer", "channel"]
    tau: float
    histogram: list[Count] = []
    polarised: Fraction
    sites: list[GateSite]
    activity: list[GateEpoch] = []
    modes: list[GateMode] = []
    sweep: list[GateMode] = []
    gate_macs: Count = 0
    samples: Samples | None = None

    @model_validator(mode="after")
    def _one_figure_a_site(self) -> Gating:
        for epoch in self.activity:
            if len(epoch.sites) != len(self.sites):
                raise ValueError(
                    f"epoch {epoch.epoch} of activity has {len(epoch.sites)} figures "
                    f"for {len(self.sites)} sites"
                )
        return self

    @property
    def gates(self) -> int:
        """Number of gates at all sites."""
        return sum(site.gates for site in self.sites)

    @property
    def open(self) -> float:
        """Mean share of open gates over the test samples, under the policy."""
        return sum(site.gates * site.open for site in self.sites) / max(self.gates, 1)
