"""Exits whose gates learn who leaves (Herrmann, Bowen and Zabih, ECCV 2020, sections 5 and S1.5).

At every site, a classifier as in MSDNet, and a Gumbel gate that sees the same features. Gates, classifiers
and network are trained together: gates are drawn, and what it costs where samples leave is held against a
target.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from adaptify.assembly import assemble
from adaptify.data import Data
from adaptify.errors import TargetError
from adaptify.graph.cost import CostModel
from adaptify.graph.sites import ExitSite
from adaptify.graph.trace import Traced
from adaptify.methods.base import ExitFit, FitContext, GatingMethod, Section, register
from adaptify.methods.exits import choose_sites, train_exits
from adaptify.methods.gating import distil_from_backbone
from adaptify.plan import PlaceExit
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.policy import GATE, ThresholdPolicy
from adaptify.training.exit_loss import LearnedExitsObjective
from adaptify.training.options import LoopOptions

_WIDTH = 128  # filters in the paper (section S1.5)
_GATE_SHARE = 0.08  # of the MACs, that a gate may take unless told otherwise


class Gates(Section):
    """Which exits, and where.

    Attributes:
        sites: Names or globs of exit sites; None puts one after every stage but the last, where leaving takes
            fewer MACs than the whole network.
        head: The classifier: `convolutional`, as in MSDNet, or `linear`, one layer on the average.
        width: Filters of the convolutions of classifiers and gates; None: the paper's 128, or at each exit as
            many as a gate can have for 8% of the MACs.
    """

    sites: tuple[str, ...] | None = None
    head: Literal["linear", "convolutional"] = "convolutional"
    width: int | None = Field(default=None, ge=1, le=1 << 12)


class Train(LoopOptions):
    """How network, classifiers and gates are trained together.

    Attributes:
        target: Fraction of the MACs at which using less is worth nothing more.
        compute_weight: Weight of the squared distance above the target.
        auxiliary: Weight of the cross-entropy of every classifier over all samples, beside that of each
            over the samples that leave there.
    """

    target: float = Field(default=0.5, gt=0, le=1)
    compute_weight: float = Field(default=10.0, ge=0)
    auxiliary: float = Field(default=1.0, ge=0)


@register
class GumbelExits(GatingMethod[Gates, Train]):
    """Early exits with gates that are drawn in training."""

    name = "gumbel_exits"
    summary = "early exits with gates that learn, together with the network, who leaves"
    Gates = Gates
    Train = Train

    def place(self, traced: Traced, cost: CostModel, classes: int) -> tuple[PlaceExit, ...]:
        """Put a classifier and a gate after stages where leaving saves, or at the sites that were named."""
        options = self.gates
        steps = tuple(
            PlaceExit(
                site=site.name,
                channels=site.channels,
                classes=classes,
                head=options.head,
                width=options.width or _affordable_width(site, cost),
                gate=True,
            )
            for site in choose_sites(traced, cost, options.sites)
        )
        return steps if options.sites is not None else _that_save(traced, steps)

    def check(self, model: AdaptiveModel) -> None:
        """Refuse a target that leaving at the first exit exceeds.

        Raises:
            TargetError: It does.
        """
        target = self.train.target
        least = _macs(model)[0] / model.cost.total
        if target < least:
            raise TargetError(
                f"train.target={target:g} is out of reach: a sample that leaves at the first exit, "
                f"{model.exits[0].site.name}, takes {least:.1%} of the MACs",
                "Ask for more, or put a smaller exit (gates.width) earlier in the network (--sites).",
            )

    def fit(self, model: AdaptiveModel, data: Data, context: FitContext) -> ExitFit:
        """Train network, classifiers and gates together."""
        settings = self.train
        objective = LearnedExitsObjective(
            _macs(model),
            model.cost.total,
            settings.target,
            weight=settings.compute_weight,
            auxiliary=settings.auxiliary,
            label_smoothing=settings.label_smoothing,
            distillation=distil_from_backbone(settings.distill, model, context.device),
        )
        return train_exits(model, data, settings, objective, context, score=GATE)


def _affordable_width(site: ExitSite, cost: CostModel) -> int:
    """The largest power of two, up to the paper's, at which the convolutions of a gate are not too dear."""
    widths = (_WIDTH >> shift for shift in range(_WIDTH.bit_length()))
    share = _GATE_SHARE * cost.total
    return next((w for w in widths if 9 * site.positions * (site.channels + w) * w <= share), 1)


def _that_save(traced: Traced, steps: tuple[PlaceExit, ...]) -> tuple[PlaceExit, ...]:
    """Leave out exits, the last first, where leaving takes as many MACs as the whole network; not all."""
    while len(steps) > 1:
        with torch.random.fork_rng(devices=()):  # heads are drawn later, in the run's own order
            model = assemble(traced, steps)
        assert isinstance(model, AdaptiveModel)
        dear = [step for step, macs in zip(steps, _macs(model), strict=False) if macs >= model.cost.total]
        if not dear:
            break
        steps = tuple(step for step in steps if step is not dear[-1])
    return steps


def _macs(model: AdaptiveModel) -> tuple[int, ...]:
    """MACs of a sample that leaves at each exit, the gates that decide it included."""
    return tuple(model.exit_macs(ThresholdPolicy((0.0,) * len(model.exits), GATE)))
