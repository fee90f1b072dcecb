"""A pruned network held against what it must compute, and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from adaptify.errors import TargetError
from adaptify.graph.cost import CostModel
from adaptify.graph.program import compile_graph
from adaptify.graph.trace import Traced
from adaptify.pipeline.prepare import Network
from adaptify.plan import Step
from adaptify.recipe import Recipe
from adaptify.reports.schema import PrunedLayer
from adaptify.training.history import History

TOLERANCE = 1e-5
"""How far the outputs of the pruned network may be from those of the reference, relative to the largest."""


@dataclass(frozen=True)
class Pruned:
    """A network without some of its channels or blocks.

    Attributes:
        traced: The network; its tensors are copies.
        steps: What was done to the network before, as steps of a plan.
        macs: What it costs, as predicted before it was built.
        reference: Maps images (N, C, H, W) to what it must yield: logits with the same channels masked.
        judged_by: What channels were judged by, for the report.
        round_to: Multiple of channels that was kept to.
        frozen: Reason -> channel groups that lose nothing for it.
        notes: What the user should know.
        history: The training of the gates that chose, if gates did.
        timing: What that took, in seconds.
    """

    traced: Traced
    steps: tuple[Step, ...]
    macs: int
    reference: Callable[[Tensor], Tensor]
    judged_by: str
    round_to: int
    frozen: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()
    history: History | None = None
    timing: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def cost(self) -> CostModel:
        """Its MACs, counted."""
        return CostModel(self.traced)


def verify(pruned: Pruned) -> float:
    """Hold the network against its reference, and its MACs against the prediction.

    Returns:
        The largest difference of their outputs for random images, relative to the largest output.

    Raises:
        TargetError: They differ.
    """
    images = torch.randn(2, *pruned.traced.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = pruned.reference(images)
        found = compile_graph(pruned.traced.graph)(pruned.traced.root.eval(), images)
    scale = wanted.abs().max().clamp_min(torch.finfo(wanted.dtype).tiny)
    difference = float((found - wanted).abs().max() / scale)
    if not difference <= TOLERANCE:
        raise TargetError(
            f"the pruned network differs from the masked one by {difference:.2g} of the largest output",
            "This is a bug in adaptify: nothing was written. Please report it with `adaptify env`.",
        )
    if pruned.cost.total != pruned.macs:
        raise TargetError(
            f"the pruned network costs {pruned.cost.total:,} MACs instead of {pruned.macs:,}",
            "This is a bug in adaptify: nothing was written. Please report it with `adaptify env`.",
        )
    return difference


def pruning_part(recipe: Recipe, network: Network, pruned: Pruned) -> dict[str, Any]:
    """The `pruning` part of a report."""
    achieved = pruned.macs / network.cost.total
    return {
        "target": recipe.prune.target if recipe.prune.target is not None else achieved,
        "achieved": achieved,
        "importance": pruned.judged_by,
        "round_to": pruned.round_to,
        "frozen": {reason: list(names) for reason, names in pruned.frozen.items()},
        "layers": [layer.model_dump() for layer in pruned_layers(network, pruned)],
    }


def pruned_layers(network: Network, pruned: Pruned) -> list[PrunedLayer]:
    """Channels and MACs of every layer with channels, before and after."""
    after = {node.name: node for node in pruned.traced.graph.nodes}
    rows = []
    for node in network.traced.graph.nodes:
        if node.op != "call_module":
            continue
        before = _channels(network.traced.root.get_submodule(str(node.target)))
        if before is None:
            continue
        left = after.get(node.name)
        rows.append(
            PrunedLayer(
                name=node.meta["name"],
                channels_before=before,
                channels_after=_channels(pruned.traced.root.get_submodule(str(left.target))) or 0
                if left is not None
                else 0,
                macs_before=network.cost.macs[node.name],
                macs_after=pruned.cost.macs[left.name] if left is not None else 0,
            )
        )
    return rows


def _channels(module: nn.Module) -> int | None:
    for name in ("out_channels", "out_features"):
        if isinstance(count := getattr(module, name, None), int):
            return count
    return None
