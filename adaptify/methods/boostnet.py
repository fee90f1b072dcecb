"""BoostNet: exits trained together, each to correct those before it (Yu et al., AAAI 2023).

What exit n predicts is F_n = t_n F_{n-1} + f_n: its own logits, added to the weakened sum of those before,
through which no gradient goes (eq. 6 and 8). All exits are trained at once with the network (Algorithm 1): on
a network that has exits of its own (MSDNet, RANet), or on any other, whose stages get exits.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator

from adaptify.data import Data
from adaptify.errors import UsageError
from adaptify.graph.cost import CostModel
from adaptify.graph.trace import Traced
from adaptify.methods.base import ExitFit, FitContext, GatingMethod, Section, register
from adaptify.methods.exits import choose_sites, train_exits
from adaptify.methods.gating import distil_from_backbone
from adaptify.methods.linear_heads import cache_pooled, fit_linear_heads, linear_layers
from adaptify.plan import BoostExits, ExitsStep, PlaceExit
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.optimize import optimize
from adaptify.training.exit_loss import ExitsObjective, weights_of
from adaptify.training.options import LoopOptions


class Gates(Section):
    """Which exits, what they predict, and when samples leave.

    Attributes:
        sites: Names or globs of exit sites; None: the exits that the network has, or else one after every
            stage but the last.
        head: What is put at a site: `linear`, one layer on averages, or `convolutional`, as in MSDNet.
        pool: Side k of the k x k average that a linear head sees.
        width: Filters of the convolutions of a convolutional head.
        ensemble: `boosted`: each exit corrects those before it; `none`: each predicts by itself, so that
            the loss is the plain sum over exits that MSDNet has.
        temperature: t_n of the boosted ensemble: one number for all, or one for each exit but the first and
            for the output.
        score: What is held against the threshold of an exit (see `runtime.policy.SCORES`).
        scale: Whether the logits of each exit are divided by a temperature that is fitted on held-out samples
            before they are scored (Guo et al., 2017).
    """

    sites: tuple[str, ...] | None = None
    head: Literal["linear", "convolutional"] = "linear"
    pool: int = Field(default=1, ge=1, le=16)
    width: int = Field(default=128, ge=1, le=1 << 12)
    ensemble: Literal["boosted", "none"] = "boosted"
    temperature: float | tuple[float, ...] = 0.5
    score: Literal["confidence", "entropy", "margin", "distance"] = "confidence"
    scale: bool = False

    @field_validator("temperature")
    @classmethod
    def _weakens(cls, value: float | tuple[float, ...]) -> float | tuple[float, ...]:
        if not all(0 <= item < math.inf for item in (value if isinstance(value, tuple) else (value,))):
            raise ValueError("a temperature is a finite number, 0 or more")
        return value


class Train(LoopOptions):
    """How network and exits are trained together.

    Attributes:
        weights: w_n: of the loss of each exit, and of the output; None: 1 for all, as in the paper.
        warm_start: Whether linear heads that are put into the network start as classifiers of what the
            network, as it is, has at their sites (as d-gate trains them, with cross-entropy), and not at 0.
        rescale: Whether the gradient that reaches the layers before exit n is the mean over the exits behind
            it, and not the sum (eq. 7).
    """

    weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    warm_start: bool = True
    rescale: bool = True


@register
class BoostNet(GatingMethod[Gates, Train]):
    """Exits trained as a boosted ensemble, together with the network."""

    name = "boostnet"
    summary = "early exits trained together with the network, each to correct those before it"
    Gates = Gates
    Train = Train

    def place(self, traced: Traced, cost: CostModel, classes: int) -> tuple[ExitsStep, ...]:
        """Take the exits of the network, or put one after every stage but the last, or at named sites."""
        options = self.gates
        places: list[ExitsStep] = []
        if not traced.own_exits or options.sites is not None:
            places += [
                PlaceExit(
                    site=site.name,
                    channels=site.channels,
                    classes=classes,
                    pool=options.pool,
                    head=options.head,
                    width=options.width,
                )
                for site in choose_sites(traced, cost, options.sites)
            ]
        if options.ensemble == "boosted":
            count = len(places) or len(traced.own_exits)
            places.append(BoostExits(temperatures=_temperatures(options.temperature, count)))
        return tuple(places)

    def fit(self, model: AdaptiveModel, data: Data, context: FitContext) -> ExitFit:
        """Train network and exits together."""
        settings = self.train
        objective = ExitsObjective(
            weights_of(settings.weights, len(model.exits) + 1),
            label_smoothing=settings.label_smoothing,
            distillation=distil_from_backbone(settings.distill, model, context.device),
        )
        if settings.warm_start and len(linear_layers(model)) == len(model.exits):
            backbone = optimize(model, context.device)
            with cache_pooled(backbone, data.train, context, "train") as features:
                fit_linear_heads(model, features, context, loss="cross_entropy")
        model.rescale_gradients = settings.rescale
        return train_exits(
            model, data, settings, objective, context, score=self.gates.score, scale=self.gates.scale
        )


def _temperatures(given: float | tuple[float, ...], count: int) -> tuple[float, ...]:
    if not isinstance(given, tuple):
        return (given,) * count
    if len(given) != count:
        raise UsageError(
            f"gates.temperature has {len(given)} numbers for {count} exits and the output",
            f"Give one number for all, or {count}: one for each but the first.",
        )
    return given
