"""A method of one's own: exits at which images leave at random, to see what other methods' gates are worth.

Classifiers and network are trained together, as MSDNet's are. The gates are drawn once and never trained, so
that who leaves has nothing to do with how sure a classifier is.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from adaptify.data import Data
from adaptify.graph.cost import CostModel
from adaptify.graph.trace import Traced
from adaptify.methods.base import ExitFit, FitContext, GatingMethod, Section, register
from adaptify.methods.exits import choose_sites, train_exits
from adaptify.plan import PlaceExit
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.policy import GATE
from adaptify.training.exit_loss import ExitsObjective
from adaptify.training.options import LoopOptions


class Gates(Section):
    """Which exits, and where.

    Attributes:
        sites: Names or globs of exit sites; None puts one after every stage but the last.
        spread: Standard deviation of the weights of the gates.
    """

    sites: tuple[str, ...] | None = None
    spread: float = Field(default=1.0, gt=0)


@register
class RandomExit(GatingMethod[Gates, LoopOptions]):
    """Early exits that images take at random."""

    name = "random_exit"
    summary = "early exits that images take at random: a baseline"
    Gates = Gates
    Train = LoopOptions

    def place(self, traced: Traced, cost: CostModel, classes: int) -> tuple[PlaceExit, ...]:
        """Put a classifier and a gate at every site."""
        sites = choose_sites(traced, cost, self.gates.sites)
        return tuple(
            PlaceExit(site=site.name, channels=site.channels, classes=classes, width=4, gate=True)
            for site in sites
        )

    def fit(self, model: AdaptiveModel, data: Data, context: FitContext) -> ExitFit:
        """Draw the gates, train the rest, and note what every exit says of held-out and test images."""
        generator = torch.Generator().manual_seed(context.seed)
        for item in model.exits:
            gate: nn.Linear = item.head.gate.linear
            nn.init.normal_(gate.weight, std=self.gates.spread, generator=generator)
        objective = ExitsObjective(weights=(1.0,) * (len(model.exits) + 1))
        return train_exits(model, data, self.train, objective, context, score=GATE)
