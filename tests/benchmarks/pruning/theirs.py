"""Pruning by Torch-Pruning 1.6 (Fang et al., 2023), as its documentation says."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from adaptify.graph.selection import TOLERANCE

try:
    import torch_pruning as tp
except ModuleNotFoundError:
    sys.exit("Torch-Pruning is not installed, which this compares with: pip install torch-pruning==1.6.1")

_MOST_TRIES = 12


@dataclass(frozen=True)
class Way:
    """One way to use Torch-Pruning.

    Attributes:
        pruner: Class of the pruner.
        importance: Makes its importance.
        everywhere: Whether channels of all layers are ranked together.
    """

    pruner: Callable[..., Any]
    importance: Callable[[], Any]
    everywhere: bool


WAYS = {
    "magnitude, global": Way(tp.pruner.BasePruner, tp.importance.GroupMagnitudeImportance, True),
    "magnitude, uniform": Way(tp.pruner.BasePruner, tp.importance.GroupMagnitudeImportance, False),
    "group norm, global": Way(tp.pruner.GroupNormPruner, tp.importance.GroupMagnitudeImportance, True),
    "BatchNorm scale, global": Way(tp.pruner.BNScalePruner, tp.importance.BNScaleImportance, True),
}
DEFAULT = WAYS["magnitude, global"]


def prune_once(
    model: nn.Module,
    shape: tuple[int, ...],
    ratio: float,
    *,
    way: Way = DEFAULT,
    keep: Collection[str] = (),
) -> nn.Module:
    """Return a copy of `model` less `ratio` of its channels: one dependency graph, one step.

    Args:
        model: In evaluation mode.
        shape: Of one input.
        ratio: Part of the channels to remove.
        way: How.
        keep: Names of layers whose outputs stay whole, beside the classifier's.
    """
    pruned = copy.deepcopy(model)
    layers = [module for module in pruned.modules() if isinstance(module, nn.Linear)]
    kept = [layers[-1], *(pruned.get_submodule(name) for name in keep)]
    heads = {m: m.num_heads for m in pruned.modules() if isinstance(m, nn.MultiheadAttention)}
    way.pruner(
        pruned,
        torch.randn(1, *shape),
        importance=way.importance(),
        global_pruning=way.everywhere,
        pruning_ratio=ratio,
        ignored_layers=kept,
        num_heads=heads,
        # Its defaults are dictionaries that all pruners of a process share, and fill.
        in_channel_groups={},
        out_channel_groups={},
    ).step()
    return pruned


def macs(model: nn.Module, shape: tuple[int, ...]) -> float:
    """MACs as Torch-Pruning counts them, by running the network once."""
    with torch.no_grad():
        counted: float = tp.utils.count_ops_and_params(model, torch.randn(1, *shape))[0]
    return counted


def search(
    model: nn.Module,
    shape: tuple[int, ...],
    target: float,
    *,
    count: Callable[[nn.Module, tuple[int, ...]], float] = macs,
    **options: Any,
) -> tuple[nn.Module, float, int]:
    """Find the ratio that leaves `target` of the MACs, within 1%, by bisection; or the nearest that there is.

    Returns:
        The pruned network, the ratio, and how many were tried.
    """
    goal = target * count(model, shape)
    low, high = 0.0, 1.0
    nearest: tuple[float, nn.Module, float] | None = None
    for tries in range(1, _MOST_TRIES + 1):  # noqa: B007
        ratio = (low + high) / 2
        pruned = prune_once(model, shape, ratio, **options)
        found = count(pruned, shape)
        if nearest is None or abs(found - goal) < nearest[0]:
            nearest = abs(found - goal), pruned, ratio
        if nearest[0] <= TOLERANCE * goal:
            break
        low, high = (ratio, high) if found > goal else (low, ratio)
    assert nearest is not None
    return nearest[1], nearest[2], tries
