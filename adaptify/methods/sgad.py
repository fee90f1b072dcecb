"""SGAD: one small network decides which residual blocks a sample runs through (Wang et al., 2018).

Which and how many is learned under the guidance of a classifier that knows how hard the sample is; it is
needed in training only.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from pydantic import Field
from torch import nn

from adaptify.data import Data, Split
from adaptify.errors import ModelError
from adaptify.gates.estimators import Estimator, NoisyRounding
from adaptify.gates.guide_net import GuideNet
from adaptify.graph.cost import CostModel
from adaptify.graph.gate_sites import find_layer_sites
from adaptify.graph.own_exits import refuse_own_exits
from adaptify.graph.sites import find_blocks
from adaptify.graph.trace import Traced
from adaptify.methods.base import FitContext, GateFit, GatingMethod, Section, register
from adaptify.methods.gating import distil_from_backbone, gate_place, train_gates
from adaptify.parallel import group
from adaptify.plan import PlaceMaskNet, Step
from adaptify.runtime.gated import GatedModel
from adaptify.training.gate_records import GateRecords
from adaptify.training.guided_loss import GuidedObjective, wanted_drop
from adaptify.training.loop import train
from adaptify.training.objective import Classification
from adaptify.training.optimizer import GateParameters
from adaptify.training.options import LoopOptions

# Of the wanted drop ratio: what must be reached before an epoch can be the best. Before that, accuracy is
# that of a larger network.
_REACHED = 0.9

# Of the guide while it learns alone: high, as it is small and has little time.
_GUIDE_RATE = 0.05


class Gates(Section):
    """The network that decides.

    Attributes:
        pool: Side of the small map that it shrinks what enters the first block to.
        filters: Filters of its convolution.
    """

    pool: int = Field(default=4, ge=1, le=64)
    filters: int = Field(default=16, ge=1, le=4096)


class Train(LoopOptions):
    """How network, masks and guide are trained together.

    Attributes:
        gate_lr: Learning rate of the network that decides; None: `lr`.
        max_drop: s_max: the fraction of blocks that the easiest samples should skip. The paper has 0.2 (more
            MACs) and, trained on from that, 0.8 (less).
        ste: Whose slope rounding has in the backward pass.
        noise: Standard deviation of the noise on log-odds at the end of the run; it grows from 0.
        network_weight: alpha, of the network's cross-entropy.
        mask_weight: alpha_m, of the distance between wanted and true drop ratio. The paper has 1, for 220
            epochs; short runs need more to get there.
        guide_weight: alpha_g, of the guide's cross-entropy. The paper has 0.3, with a learning rate of 0.1;
            more makes up for a lower rate. A guide that is sure of all samples wants the same of them.
        guide_epochs: Passes over the training images in which the guide learns alone, first. A guide that
            knows nothing wants all blocks open, and would undo what masks that are trained on have learned.
    """

    max_drop: float = Field(default=0.2, gt=0, lt=1)
    ste: Estimator = "sinc"
    noise: float = Field(default=1.0, ge=0)
    network_weight: float = Field(default=1.0, gt=0)
    mask_weight: float = Field(default=3.0, ge=0)
    guide_weight: float = Field(default=1.0, gt=0)
    guide_epochs: int = Field(default=2, ge=0)


@register
class Sgad(GatingMethod[Gates, Train]):
    """Residual blocks that are skipped sample by sample, as one network decides in front of them all."""

    name = "sgad"
    summary = "one mask network decides which residual blocks each sample skips"
    Gates = Gates
    Train = Train

    def place(self, traced: Traced, cost: CostModel, classes: int) -> tuple[Step, ...]:
        """Let every residual block be skipped but the last, which always runs (section 4)."""
        refuse_own_exits(traced)
        sites = find_layer_sites(find_blocks(traced, cost)[:-1])
        if not sites:
            raise ModelError(
                f"{type(traced.root).__name__} has fewer than two residual blocks; the last is never skipped",
                "Methods for other networks: dgate (exits), gumbel with gates.kind=independent (channels).",
            )
        return (
            PlaceMaskNet(
                sites=tuple(gate_place(site) for site in sites),
                pool=self.gates.pool,
                filters=self.gates.filters,
            ),
        )

    def fit(self, model: GatedModel, data: Data, context: FitContext) -> GateFit:
        """Train network, masks and guide together."""
        started = time.perf_counter()
        settings = self.train
        guide = self._guide(model.num_classes, data, context)
        sampler = NoisyRounding(settings.ste)
        model.sample = sampler
        objective = GuidedObjective(
            model.gate_cost,
            guide,
            sampler,
            max_drop=settings.max_drop,
            noise=settings.noise,
            network_weight=settings.network_weight,
            mask_weight=settings.mask_weight,
            guide_weight=settings.guide_weight,
            label_smoothing=settings.label_smoothing,
            distillation=distil_from_backbone(settings.distill, model, context.device),
        )
        wanted: list[float] = []

        def has_reached(seen: GateRecords) -> bool:
            wanted.append(mean_wanted_drop(guide, data.holdout, settings.max_drop, context))
            return _true_drop(seen) >= _REACHED * wanted[-1]

        fit = train_gates(
            model,
            data,
            settings,
            objective,
            GateParameters(model.gate_parameters),
            context,
            is_eligible=has_reached,
            companion=guide,
            observe=lambda seen: {"drop.wanted": wanted[-1], "drop.true": _true_drop(seen)},
        )
        return replace(fit, timing={"training_s": time.perf_counter() - started})

    def _guide(self, classes: int, data: Data, context: FitContext) -> GuideNet:
        """A guide with a head start."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(context.seed)
            guide = GuideNet(data.input.channels, classes).to(context.device)
        options = LoopOptions(
            epochs=self.train.guide_epochs if self.train.epochs else 0,
            batch_size=self.train.batch_size,
            augment=self.train.augment,
            lr=_GUIDE_RATE,
            recalibrate=0,
        )
        train(
            guide,
            data,
            options,
            objective=Classification(),
            device=context.device,
            seed=context.seed,
            folder=context.scratch / "guide",
            states=context.states_of("guide"),
            batch_size=context.batch_size,
            progress=context.progress,
        )
        return guide


def _true_drop(seen: GateRecords) -> float:
    """The fraction of all blocks that gates closed: a mean over samples; the last block has no gate."""
    return sum(1 - share for share in seen.site_open) / (len(seen.site_open) + 1)


@torch.inference_mode()
def mean_wanted_drop(guide: nn.Module, split: Split, max_drop: float, context: FitContext) -> float:
    """The drop ratio that the guide, in evaluation mode, wants of a split: a mean over its samples."""
    guide.eval()
    total = torch.zeros((), device=context.device)
    for images, _ in split.batches(context.batch_size, device=context.device, take=group.own_turn):
        total += wanted_drop(guide(images), max_drop).sum()
    return float(group.total(total)) / len(split)
