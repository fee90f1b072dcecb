"""A network whose gates look at samples as one graph of plain operations: logits (N, M) and gates (N, K).

Either for any batch: rows that run a block are gathered, run, and put back. Or for one image at a time, with
branches. Channels are masked in both: a file has no programs for some of them, so that closing channels
saves nothing in it.

Notation: N rows, K gates.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from adaptify.errors import ModelError
from adaptify.exports.program import Program, inference_form, share_equal
from adaptify.exports.rows import choose, positions, put, take
from adaptify.graph.channels import find_channels
from adaptify.graph.gate_sites import GateSite
from adaptify.graph.gating import insert_masks
from adaptify.graph.leftovers import is_relu, tidy
from adaptify.graph.pieces import cut_at_blocks, without_branch
from adaptify.graph.sites import BlockSite
from adaptify.graph.trace import Traced
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.skipping.model import for_inference, gates_by_block, is_nonnegative

OUTPUTS = ("logits", "gates")

_MASKS = "adaptify_masks"


@dataclass(frozen=True)
class _Step:
    """A piece of the network, and what is decided in front of it.

    Attributes:
        deciders: Names of what decides here.
        run: The piece: a `Program`, or a block.
        gates: Name of what decides the block's gates, and where among its gates they are.
    """

    deciders: tuple[str, ...]
    run: nn.Module
    gates: tuple[str, slice] | None


class GatedGraph(nn.Module):
    """The network as a row of pieces.

    Args:
        model: The network; it is left as it is.
        branching: Whether it is for one image at a time, with branches.
    """

    def __init__(self, model: GatedModel, *, branching: bool) -> None:
        super().__init__()
        if model.policy.draws:
            raise ModelError(
                "gates that are drawn anew for every batch cannot be exported: no two runs agree",
                "Choose a threshold first: adaptify calibrate.",
            )
        self._policy = model.policy
        self._order = [decider.name for decider in model.deciders]
        self.gates = nn.ModuleDict(
            {decider.name: for_inference(decider.module) for decider in model.deciders}
        )
        kind = _BranchingBlock if branching else _CompactBlock
        self._steps = _steps(model, kind)
        self.parts = nn.ModuleList(step.run for step in self._steps)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, C, H, W) to logits (N, M) and gates (N, K)."""
        x = images
        gates: dict[str, Tensor] = {}
        for step in self._steps:
            for name in step.deciders:
                gates[name] = self._policy.decide(self.gates[name](x))
            if step.gates is None:
                x = step.run(x)
            else:
                name, place = step.gates
                x = step.run(x, gates[name][:, place])
        return x, torch.cat([gates[name] for name in self._order], 1)


class _Block(nn.Module):
    """A residual block with gates.

    Args:
        piece: The block, as a network by itself.
        block: Where its parts are in it.
        sites: Its gates; that of its branch comes first.
        keeps: Whether a ReLU behind the block leaves what enters it as it is.
        scales: Whether an open gate may be less than 1.
    """

    def __init__(
        self, piece: Traced, block: BlockSite, sites: Sequence[GateSite], *, keeps: bool, scales: bool
    ) -> None:
        super().__init__()
        self._has_layer_gate = sites[0].position == "layer"
        self._is_masked = scales or len(sites) > self._has_layer_gate
        whole = (
            _with_masks(piece, sites) if self._is_masked else replace(piece, graph=copy.deepcopy(piece.graph))
        )
        tidy(whole.root, whole.graph)
        self.open = Program(inference_form(whole, empty=True))
        rest = inference_form(without_branch(piece, block), empty=True)
        steps = [node for node in rest.graph.nodes if node.op not in ("placeholder", "output")]
        is_identity = not steps or (keeps and all(is_relu(rest.root, node) for node in steps))
        share_equal(rest.root, self.open.network)
        self.closed = None if is_identity else Program(rest)

    def _run(self, x: Tensor, gates: Tensor) -> Tensor:
        result: Tensor = self.open(x, gates) if self._is_masked else self.open(x)
        return result

    def _skip(self, x: Tensor) -> Tensor:
        return x if self.closed is None else self.closed(x)


class _CompactBlock(_Block):
    """For batches of any size."""

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """Run the block for rows (N, ...) that its gates (N, k) leave open."""
        if not self._has_layer_gate:
            return self._run(x, gates)
        opened = gates[:, 0] > 0
        rows = positions(opened)
        values = self._run(take(x, rows), take(gates, rows))
        if self.closed is None:
            return put(x, rows, values)
        others = positions(~opened)
        skipped = self._skip(take(x, others))
        result = values.new_zeros((x.shape[0], *values.shape[1:]))
        return put(put(result, rows, values), others, skipped)


class _BranchingBlock(_Block):
    """For one image at a time."""

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """Run the block for one row (1, ...) if its gates (1, k) leave it open."""
        if not self._has_layer_gate:
            return self._run(x, gates)

        def run(x: Tensor, gates: Tensor) -> tuple[Tensor]:
            return (self._run(x, gates).contiguous(),)

        def skip(x: Tensor, gates: Tensor) -> tuple[Tensor]:
            # A branch must not yield what it was given.
            return (x.clone() if self.closed is None else self._skip(x).contiguous(),)

        (result,) = choose((gates[:, 0] > 0).squeeze(0), run, skip, (x, gates))
        return result


def _steps(model: GatedModel, kind: type[_Block]) -> list[_Step]:
    traced = model.backbone()
    gates = gates_by_block(model.deciders)
    order = {node.name: index for index, node in enumerate(traced.graph.nodes)}
    blocks = sorted((block for block, _, _ in gates.values()), key=lambda block: order[block.source])
    waiting: dict[str | None, list[str]] = {}
    for decider in model.deciders:
        waiting.setdefault(decider.source, []).append(decider.name)
    # Whatever has variants is either closed or fully open.
    scales = not model.policy.variants()
    steps = []
    for piece in cut_at_blocks(traced, blocks, [name for name in waiting if name is not None]):
        source = next(iter(piece.traced.graph.nodes)).name
        ready = tuple(waiting.pop(source, ()))
        if piece.block is None:
            steps.append(_Step(ready, Program(inference_form(piece.traced)), None))
            continue
        block, sites, place = gates[piece.block.name]
        keeps = is_nonnegative(traced, source)
        steps.append(_Step(ready, kind(piece.traced, block, sites, keeps=keeps, scales=scales), place))
    assert not waiting, "all gates look at what enters a block"
    return steps


def _with_masks(traced: Traced, sites: Sequence[GateSite]) -> Traced:
    """A block that takes its gates as a second input."""
    own = traced.with_own_tensors()
    own.root.add_module(_MASKS, nn.Module())
    has_channels = any(site.position != "layer" for site in sites)
    channels = find_channels(own) if has_channels else None
    return Traced(own.root, insert_masks(own, channels, sites, _MASKS), own.input_shape)
