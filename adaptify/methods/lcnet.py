"""LC-Net: saliences of layers and channels, predicted for each sample (Xia, Yin, Dai and Jha, 2020).

Next to every residual block, a linear layer on the average of what enters it says how much the branch, and
each channel of its first convolution, matters for this sample. What matters is scaled, what does not is not
computed.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from adaptify.data import Data
from adaptify.errors import ModelError
from adaptify.graph.axes import channel_axis
from adaptify.graph.channels import find_channels
from adaptify.graph.cost import CostModel
from adaptify.graph.gate_sites import GateSite, find_first_layer_sites, find_layer_sites
from adaptify.graph.own_exits import refuse_own_exits
from adaptify.graph.sites import find_blocks
from adaptify.graph.trace import Traced
from adaptify.methods.base import FitContext, GateFit, GatingMethod, Section, register
from adaptify.methods.gating import distil_from_backbone, gate_place, train_gates, with_gate_rate
from adaptify.plan import PlaceSaliences, Step
from adaptify.runtime.gated import GatedModel
from adaptify.training.gate_loss import Target, TargetSchedule
from adaptify.training.gate_records import GateRecords
from adaptify.training.optimizer import GateParameters
from adaptify.training.options import LoopOptions
from adaptify.training.salience_loss import SalienceObjective

# Of the target: how far above it the held-out images may be in an epoch that can be the best.
_REACHED = 1.05


# Found on short runs (10 epochs), with the weights below: saliences follow the target closely.
_GATE_RATE = 0.02


class Gates(Section):
    """Which saliences there are, and when they are known.

    Attributes:
        nets: `layer`: a salience for each residual branch (L-Net); `channel`: one for each channel of its
            first layer (C-Net).
        execution: `sequential`: saliences are predicted first, and all that they close is saved;
            `parallel`: while the first layer of the block runs, which then runs in full.
    """

    nets: tuple[Literal["layer", "channel"], ...] = Field(default=("layer", "channel"), min_length=1)
    execution: Literal["sequential", "parallel"] = "sequential"


class Train(LoopOptions):
    """How network and saliences are trained together.

    Attributes:
        gate_lr: Learning rate of saliences; None: 0.02 K / steps, which lets K of them get from 1 to 0 in the
            run, however many saliences and steps there are.
        l1_layer: Weight of the saliences of layers in their mean, against the cross-entropy.
        l1_channel: Weight of the saliences of channels.
        target: Fraction of the MACs at which the two are switched off, batch by batch; it falls from 1 in
            the first half of the run. None: they always act, and decide alone how much is left, as in
            the paper.
    """

    l1_layer: float = Field(default=10.0, ge=0)
    l1_channel: float = Field(default=10.0, ge=0)
    target: float | None = Field(default=0.5, gt=0, le=1)


@register
class LcNet(GatingMethod[Gates, Train]):
    """Saliences that scale, or close, residual branches and their channels, sample by sample."""

    name = "lcnet"
    summary = "saliences that scale, or close, layers and channels for each sample"
    Gates = Gates
    Train = Train

    def place(self, traced: Traced, cost: CostModel, classes: int) -> tuple[Step, ...]:
        """Give every residual block its saliences, block by block."""
        refuse_own_exits(traced)
        blocks = [
            block
            for block in find_blocks(traced, cost)
            if channel_axis(traced, traced.node(block.source)) is not None
        ]
        found: list[GateSite] = []
        if "layer" in self.gates.nets:
            found += find_layer_sites(blocks)
        if "channel" in self.gates.nets:
            found += find_first_layer_sites(find_channels(traced), blocks)
        # L-Net's salience comes first in each block; the sort keeps the order.
        order = {block.name: index for index, block in enumerate(blocks)}
        sites = sorted(found, key=lambda site: order[site.block.name] if site.block is not None else 0)
        if not sites:
            raise ModelError(
                f"{type(traced.root).__name__} has no residual block with "
                f"{' or '.join(f'{net}s' for net in self.gates.nets)} that can be closed",
                "Methods for other networks: dgate (exits), gumbel with gates.kind=independent (channels).",
            )
        return (
            PlaceSaliences(execution=self.gates.execution, sites=tuple(gate_place(site) for site in sites)),
        )

    def check(self, model: GatedModel) -> None:
        """Refuse a target that is less than what no salience can close.

        Raises:
            TargetError: It is.
        """
        if self.train.target is not None:
            model.gate_cost.check_target(self.train.target)

    def fit(self, model: GatedModel, data: Data, context: FitContext) -> GateFit:
        """Train the network and its saliences together."""
        cost, settings = model.gate_cost, self.train
        of_layers = [site.position == "layer" for site in model.sites for _ in range(site.gates)]
        objective = SalienceObjective(
            cost,
            torch.tensor(of_layers),
            l1_layer=settings.l1_layer,
            l1_channel=settings.l1_channel,
            target=None if settings.target is None else Target(settings.target, TargetSchedule()),
            label_smoothing=settings.label_smoothing,
            distillation=distil_from_backbone(settings.distill, model, context.device),
        )

        def reached(seen: GateRecords) -> bool:
            # Before the target is reached, accuracy is that of a larger network.
            return settings.target is None or seen.kept <= settings.target * _REACHED

        return train_gates(
            model,
            data,
            with_gate_rate(self.train, _GATE_RATE, cost.gates, len(data.train)),
            objective,
            GateParameters(model.gate_parameters, cost.gates),
            context,
            is_eligible=reached,
        )
