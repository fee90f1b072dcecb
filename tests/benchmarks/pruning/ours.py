"""Pruning by importance as `adaptify prune` does it, less files and reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from adaptify.graph.channel_cost import ChannelCost
from adaptify.graph.channels import Channels, find_channels
from adaptify.graph.importance import score_channels
from adaptify.graph.selection import Selection, select_channels
from adaptify.graph.surgery import remove_channels
from adaptify.graph.trace import Traced, trace

Score = Callable[[Channels], dict[str, Tensor]]
"""Scores (size,) of every group that can be removed."""


@dataclass(frozen=True)
class Pruned:
    """A network before and after.

    Attributes:
        channels: The channels of the network before.
        selection: Those that stay.
        traced: The network after; its root runs by itself.
    """

    channels: Channels
    selection: Selection
    traced: Traced


def prune(
    model: nn.Module,
    shape: tuple[int, ...],
    target: float = 0.5,
    *,
    round_to: int = 16,
    score: Score = score_channels,
) -> Pruned:
    """Prune `model`, in evaluation mode and left as it is, to `target` of its MACs for inputs (1, *shape)."""
    channels = find_channels(trace(model, shape))
    selection = select_channels(ChannelCost(channels), score(channels), target, round_to=round_to)
    return Pruned(channels, selection, remove_channels(channels, selection.keep))
