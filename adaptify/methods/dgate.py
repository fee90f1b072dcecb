"""d-gate: early exits with a hinge loss on a frozen backbone (Shafiee et al., CVPR Workshops 2019).

The backbone is run once over all images; pooled features are cached and all gates are trained from the
cache, each on all training data, as the paper has it (section 3.1). A gate is one linear layer.
"""

from __future__ import annotations

import time
from typing import Literal

import torch
from pydantic import Field

from adaptify.data import Data
from adaptify.graph.cost import CostModel
from adaptify.graph.sites import ExitSite
from adaptify.graph.trace import Traced
from adaptify.methods.base import ExitFit, FitContext, GatingMethod, Section, register
from adaptify.methods.exits import choose_sites
from adaptify.methods.linear_heads import OUTPUT, cache_pooled, fit_linear_heads, linear_layers
from adaptify.plan import PlaceExit
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.optimize import optimize
from adaptify.runtime.policy import SCORES
from adaptify.training.features import FeatureCache
from adaptify.training.records import ExitRecords

# Fewer features hardly tell classes apart: averages of 16 channels, say, where those of 256 do.
_NARROW = 64
_ENOUGH = 256


class Gates(Section):
    """Which gates, and where.

    Attributes:
        sites: Names or globs of exit sites; None puts one after every stage but the last.
        pool: Side k of the k x k average that a gate sees; 1 is the global average. None takes, for a gate,
            the least power of two that gives it 256 features, as far as there are so many positions.
        loss: `hinge` (one-vs-rest, the paper's), or `cross_entropy` (its Experiment 1).
        score: What is held against the threshold: `distance` (the paper's Algorithm 1), `margin` (to the
            next class) or `confidence`; None takes distance for hinge, confidence for cross-entropy.
    """

    sites: tuple[str, ...] | None = None
    pool: int | None = Field(default=None, ge=1, le=16)
    loss: Literal["hinge", "cross_entropy"] = "hinge"
    score: Literal["distance", "margin", "confidence"] | None = None


class Train(Section):
    """How the gates are trained from the cached features, by minibatch SGD.

    Attributes:
        epochs: Passes over the cached features; None: 20, or more for a small data set.
        lr: Learning rate at the start, for samples of unit mean square norm.
        l2: Weight of the penalty ||W||^2, for standardised features.
        batch_size: Samples per step.
        augment: Augmented passes over the training images, beside the plain one.
    """

    epochs: int | None = Field(default=None, ge=1)
    lr: float = Field(default=5.0, gt=0)
    l2: float = Field(default=1e-4, ge=0)
    batch_size: int = Field(default=256, ge=1)
    augment: int = Field(default=0, ge=0, le=100)


def enough_averages(site: ExitSite) -> int:
    """Side k of the grid of averages that gives a linear gate at `site` enough to tell classes apart.

    The paper does not say how it pools. In its networks all sites have channels enough, and this is 1: the
    global average.
    """
    side = 1
    while site.channels * side**2 < _ENOUGH and (2 * side) ** 2 <= site.positions:
        side *= 2
    return side


@register
class DGate(GatingMethod[Gates, Train]):
    """Early exits trained as linear classifiers on pooled features of a frozen network."""

    name = "dgate"
    summary = "early exits with hinge loss on a frozen backbone"
    Gates = Gates
    Train = Train

    @property
    def score(self) -> str:
        """Distance to a boundary (Algorithm 1), or confidence for gates trained with cross-entropy."""
        return self.gates.score or ("distance" if self.gates.loss == "hinge" else "confidence")

    def place(self, traced: Traced, cost: CostModel, classes: int) -> tuple[PlaceExit, ...]:
        """Put a gate after every stage but the last, or at the sites that were named."""
        chosen = choose_sites(traced, cost, self.gates.sites)
        return tuple(
            PlaceExit(
                site=site.name,
                channels=site.channels,
                classes=classes,
                pool=self.gates.pool or enough_averages(site),
            )
            for site in chosen
        )

    def fit(self, model: AdaptiveModel, data: Data, context: FitContext) -> ExitFit:
        """Cache pooled features of all images in one pass, and train every gate from the cache."""
        started = time.perf_counter()
        backbone = optimize(model, context.device)
        with (
            cache_pooled(backbone, data.train, context, "train", augment=self.train.augment) as train,
            cache_pooled(backbone, data.holdout, context, "holdout", exact=True) as holdout,
            cache_pooled(backbone, data.test, context, "test", exact=True) as test,
        ):
            cached = time.perf_counter()
            fit_linear_heads(
                model,
                train,
                context,
                loss=self.gates.loss,
                l2=self.train.l2,
                epochs=self.train.epochs,
                lr=self.train.lr,
                batch_size=self.train.batch_size,
            )
            return ExitFit(
                score=self.score,
                holdout=self._records(model, holdout),
                test=self._records(model, test),
                timing={
                    "forward_pass_s": cached - started,
                    "gate_training_s": time.perf_counter() - cached,
                },
                notes=(*train.notes, *self._advice(model)),
            )

    def _advice(self, model: AdaptiveModel) -> tuple[str, ...]:
        """What the user could try when gates have too little to go by."""
        narrow = [name for name, linear in linear_layers(model).items() if linear.in_features < _NARROW]
        if not narrow or self.gates.pool is None:
            return ()
        return (
            f"the gates at {', '.join(narrow)} see fewer than {_NARROW} features: gates.pool=4 lets them see "
            "where in the image things are, and more samples leave",
        )

    def _records(self, model: AdaptiveModel, cache: FeatureCache) -> ExitRecords:
        rate = SCORES[self.score]
        scores, predictions = [], []
        with torch.no_grad():
            for name, linear in linear_layers(model).items():
                logits = linear(cache.site(name).tensor().float())
                scores.append(rate(logits))
                predictions.append(logits.argmax(1))
        predictions.append(cache.site(OUTPUT).tensor().squeeze(1))
        return ExitRecords(torch.stack(scores), torch.stack(predictions), cache.labels)
