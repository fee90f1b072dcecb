"""Stochastic gates trained towards a compute target (Herrmann, Bowen and Zabih, ECCV 2020).

Gates close groups of channels, or whole residual branches. Those that look at nothing end up open or closed
and say what the network can do without (pruning); those that look at the sample compute what it needs
(conditional computation).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from adaptify.data import Data
from adaptify.errors import ModelError
from adaptify.graph.channels import find_channels
from adaptify.graph.cost import CostModel
from adaptify.graph.decouple import decouple, find_adapters
from adaptify.graph.gate_sites import POSITIONS, GateSite, find_channel_sites, find_layer_sites
from adaptify.graph.own_exits import refuse_own_exits
from adaptify.graph.sites import BlockSite, find_blocks
from adaptify.graph.trace import Traced
from adaptify.methods.base import FitContext, GateFit, GatingMethod, Section, register
from adaptify.methods.gating import distil_from_backbone, gate_place, train_gates, with_gate_rate
from adaptify.plan import DecoupleBlocks, PlaceGates, Step
from adaptify.runtime.gated import GatedModel
from adaptify.training.gate_loss import GateObjective, Measure, Target, TargetSchedule
from adaptify.training.gate_records import GateRecords
from adaptify.training.optimizer import GateParameters
from adaptify.training.options import LoopOptions

# Retrofitted networks start with nearly all gates open, so at the accuracy of their checkpoint.
_OPEN = {"channel": 0.98, "layer": 0.87}


# Found on short runs (10 to 20 epochs) with an annealed target: gates follow it closely.
_GATE_RATE = 4.0


class Gates(Section):
    """Which gates, and where.

    Attributes:
        kind: `independent` gates look at nothing, `dependent` ones at what enters their residual block.
        granularity: `channel` gates close groups of filters, `layer` gates residual branches.
        filters: Channels that one gate closes together; None: an eighth of a layer's, from 16 to 128, and 8
            in layers of less than 64.
        positions: What of a residual block has channel gates: what it reads (`input`), its inner `channels`,
            what it adds (`output`), and what a projection adds (`shortcut`). Networks without residual
            blocks have `channels` only.
        hidden: Width of the network of each dependent gate.
        open_probability: Of every gate at first; None: .98 for channels, .87 for layers.
        per: Dependent gates are decided `block` by block, or once a `stage` (blocks in a row whose inputs
            have the same shape): cheaper, from less.
    """

    kind: Literal["independent", "dependent"] = "independent"
    granularity: Literal["channel", "layer"] = "channel"
    filters: int | None = Field(default=None, ge=1)
    positions: tuple[Literal["input", "channels", "output", "shortcut"], ...] = Field(
        default=("input", "channels", "output", "shortcut"), min_length=1
    )
    hidden: int = Field(default=16, ge=1, le=4096)
    open_probability: float | None = Field(default=None, gt=0, lt=1)
    per: Literal["block", "stage"] = "block"


class Train(LoopOptions):
    """How network and gates are trained together.

    Attributes:
        gate_lr: Learning rate of gates; None: 4 G / steps, which lets them get from open to closed in the
            run, however many gates and steps there are.
        target: What may stay in use: a fraction of the MACs, or of the gates if `measure` is not `macs`.
        measure: What is held against the target: `macs` (FLOPs loss), `activation` (batch activation loss,
            eq. 1) or `per_gate` (each gate on its own, as in AIG).
        weight: Of the distance from the target, against the cross-entropy. The paper has 1 (ImageNet) and 2
            (CIFAR), for 100 epochs with a constant target; short runs with an annealed one need more to end
            at the target.
        const_quad: Whether using less than the target is free (eq. 3).
        target_schedule: How the target changes during training (S1).
    """

    target: float = Field(default=0.5, gt=0, le=1)
    measure: Measure = "macs"
    weight: float = Field(default=100.0, gt=0)
    const_quad: bool = False
    target_schedule: TargetSchedule = TargetSchedule()


@register
class Gumbel(GatingMethod[Gates, Train]):
    """On-off gates, sampled in training, that close channels or residual branches."""

    name = "gumbel"
    summary = "stochastic gates that close channels or layers, for all samples or for each"
    Gates = Gates
    Train = Train

    def place(self, traced: Traced, cost: CostModel, classes: int) -> tuple[Step, ...]:
        """Put gates at every position that was asked for; residual blocks get channels of their own first."""
        refuse_own_exits(traced)
        blocks = find_blocks(traced, cost)
        dependent, by_layer = self.gates.kind == "dependent", self.gates.granularity == "layer"
        if not blocks and (dependent or by_layer):
            raise ModelError(
                f"{type(traced.root).__name__} has no residual block that "
                f"{'a dependent gate could look at' if dependent else 'could be left out'}",
                "Use gates.kind=independent gates.granularity=channel.",
            )
        steps: list[Step] = []
        if by_layer:
            sites = find_layer_sites(blocks)
        else:
            if blocks and set(self.gates.positions) - {"channels"}:
                decoupled = decouple(traced, blocks)
                with_adapters = {item.block for item in find_adapters(decoupled)}
                names = tuple(block.name for block in blocks if block.name in with_adapters)
                if names:
                    steps.append(DecoupleBlocks(blocks=names))
                    traced = decoupled
            blocks = find_blocks(traced, CostModel(traced))
            sites = self._channel_sites(traced, blocks)
        steps.append(
            PlaceGates(
                dependent=dependent,
                hidden=self.gates.hidden,
                per=self.gates.per,
                open_probability=self.gates.open_probability or _OPEN[self.gates.granularity],
                sites=tuple(gate_place(site) for site in sites),
            )
        )
        return tuple(steps)

    def _channel_sites(self, traced: Traced, blocks: tuple[BlockSite, ...]) -> tuple[GateSite, ...]:
        positions = [position for position in POSITIONS if position in self.gates.positions]
        channels = find_channels(traced)
        sites = find_channel_sites(channels, blocks, positions=positions, filters=self.gates.filters)
        if self.gates.kind == "dependent":
            sites = tuple(site for site in sites if site.block is not None)
        if not sites:
            raise ModelError(
                f"{type(traced.root).__name__} has no channels that gates could close "
                f"at: {', '.join(positions)}",
                "`adaptify prune CKPT --target 0.5 --dry-run` says which channels cannot go, and why.",
            )
        return sites

    def check(self, model: GatedModel) -> None:
        """Refuse a target that is less than what no gate can close.

        Raises:
            TargetError: It is.
        """
        if self.train.measure == "macs":
            model.gate_cost.check_target(self.train.target)

    def fit(self, model: GatedModel, data: Data, context: FitContext) -> GateFit:
        """Train the network and its gates together, towards the target."""
        cost = model.gate_cost
        objective = GateObjective(
            cost,
            Target(self.train.target, self.train.target_schedule),
            measure=self.train.measure,
            weight=self.train.weight,
            const_quad=self.train.const_quad,
            label_smoothing=self.train.label_smoothing,
            distillation=distil_from_backbone(self.train.distill, model, context.device),
        )

        def reached(seen: GateRecords) -> bool:
            # Before the target is reached, accuracy is that of a larger network.
            return self.train.measure != "macs" or seen.kept <= self.train.target * 1.01

        return train_gates(
            model,
            data,
            with_gate_rate(self.train, _GATE_RATE, cost.gates, len(data.train)),
            objective,
            GateParameters(model.gate_parameters, cost.gates),
            context,
            is_eligible=reached,
        )
