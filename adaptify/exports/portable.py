"""What a file is made of: any network that adaptify makes, as a module of plain operations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from adaptify.assembly import Adapted
from adaptify.errors import ModelError, UsageError
from adaptify.exports.exits import OUTPUTS as EXIT_OUTPUTS
from adaptify.exports.exits import BranchingExits, CompactExits
from adaptify.exports.gates import OUTPUTS as GATE_OUTPUTS
from adaptify.exports.gates import GatedGraph
from adaptify.exports.program import Program, inference_form
from adaptify.graph.trace import Traced
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.gated import GatedModel

ControlFlow = Literal["compact", "if"]
"""How what is skipped is skipped: rows are taken out of the batch, or branches of a graph are not run."""


@dataclass(frozen=True)
class Portable:
    """A network as a file will hold it.

    Attributes:
        module: Maps images (N, C, H, W) to the outputs, a tuple.
        outputs: Their names.
        one_by_one: Whether N is 1.
        notes: What a user should know of it.
    """

    module: nn.Module
    outputs: tuple[str, ...]
    one_by_one: bool = False
    notes: tuple[str, ...] = field(default=())


class _Plain(nn.Module):
    """A network without decisions."""

    def __init__(self, traced: Traced) -> None:
        super().__init__()
        program = Program(inference_form(traced))
        self.network = program.network
        self._program = [program]  # not a second name for the same modules
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Map (N, C, H, W) to logits (N, M), as a tuple of one."""
        return (self._program[0](images),)


def make_portable(model: Adapted, network: Traced | None, control_flow: ControlFlow = "compact") -> Portable:
    """Return the form of `model` that a file holds.

    Args:
        model: The network.
        network: What `static_network` says of it.
        control_flow: How what is skipped is skipped.

    Raises:
        ModelError: It cannot be put into one.
        UsageError: Branches are asked for, and it has nothing to branch at.
    """
    branching = control_flow == "if"
    if network is not None:
        if branching:
            raise UsageError(
                "a network without exits or gates has nothing to branch at", "Leave --control-flow out."
            )
        return Portable(_Plain(network), ("logits",))
    if isinstance(model, AdaptiveModel):
        if not branching:
            return Portable(CompactExits(model), EXIT_OUTPUTS)
        return Portable(BranchingExits(model), EXIT_OUTPUTS, one_by_one=True)
    if not model.per_sample:
        raise ModelError(
            "gates that are drawn anew for every batch cannot be exported: no two runs agree",
            "Choose a threshold first: adaptify calibrate.",
        )
    if branching and not _has_layer_gates(model):
        raise UsageError(
            "gates that close channels alone leave no block to branch around", "Leave --control-flow out."
        )
    notes: tuple[str, ...] = ()
    if any(site.position != "layer" for site in model.sites):
        notes = (
            "channels that gates close are masked in the file, and computed: only closed blocks are skipped",
        )
    return Portable(GatedGraph(model, branching=branching), GATE_OUTPUTS, branching, notes)


def _has_layer_gates(model: GatedModel) -> bool:
    return any(site.position == "layer" for site in model.sites)
