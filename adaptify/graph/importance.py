"""How much each channel matters, judged by the weights alone.

Every member of a group (the layers that write its channels, those that read them, their BatchNorms) gives
each channel a score. The scores of one member are divided by their mean, so that members count alike whatever
their scale, and averaged over the members: the scores of a group have mean 1, and groups can be compared.
Those of residual streams are doubled: their channels go after the ones inside the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from adaptify.errors import UsageError, did_you_mean
from adaptify.graph.adapters import ADAPTERS
from adaptify.graph.channels import Channels
from adaptify.graph.grouping import ChannelGroup, Member
from adaptify.graph.propagation import attribute

Criterion = Callable[[str, Any], Tensor | None]
"""(kind of the member, its module) -> scores (positions,), or None where the criterion has nothing to say."""

STREAM_WEIGHT = 2.0
"""How much more a channel of a residual stream counts than one that a single block knows."""


def score_channels(channels: Channels, criterion: str = "l2") -> dict[str, Tensor]:
    """Return the scores (size,) of every removable group, by name; higher is more important.

    Their mean is 1, and `STREAM_WEIGHT` for residual streams. What is taken from a stream is missing in every
    block along it, and training on does not bring as much of it back.

    Args:
        channels: The channels of the network, with its trained weights.
        criterion: A key of `CRITERIA`. Groups to which it does not apply (no BatchNorm for "bn_scale")
            are scored by "l2".

    Raises:
        UsageError: The criterion is unknown.
    """
    if criterion not in CRITERIA:
        raise UsageError(
            f"unknown importance criterion '{criterion}'{did_you_mean(criterion, CRITERIA)}",
            f"Use one of: {', '.join(CRITERIA)}.",
        )
    with torch.no_grad():
        scorers = [_Scorer(channels.traced.root, CRITERIA[name]) for name in (criterion, "l2")]
        scores = {}
        for group in channels.removable:
            # The last scorer has an answer to every layer with weights; to a stream that adapters alone
            # read and write there is none, and its channels are all alike.
            answers = (found for scorer in scorers if (found := scorer.score(group)) is not None)
            weight = STREAM_WEIGHT if group.name in channels.streams else 1.0
            scores[group.name] = weight * next(answers, torch.ones(group.size))
    return scores


class _Scorer:
    """Scores by one criterion; a layer that many groups share is looked at once."""

    def __init__(self, root: nn.Module, criterion: Criterion) -> None:
        self._root = root
        self._criterion = criterion
        self._known: dict[tuple[str, str], Tensor | None] = {}

    def score(self, group: ChannelGroup) -> Tensor | None:
        found = [score for member in group.members if (score := self._member(member)) is not None]
        return torch.stack(found).mean(0) if found else None

    def _member(self, member: Member) -> Tensor | None:
        module = attribute(self._root, member.target)
        if member.kind == "attribute" or isinstance(module, ADAPTERS):
            return None
        key = (member.kind, member.target)
        if key not in self._known:
            scores = self._criterion(member.kind, module)
            self._known[key] = None if scores is None else scores.float().cpu()
        known = self._known[key]
        if known is None:
            return None
        own = known[member.positions].mean(1)
        return own / own.mean().clamp_min(torch.finfo(own.dtype).tiny)


def filter_axis(kind: str, layer: Any) -> int | None:
    """Return the axis of a layer's weight that has an entry for each channel written or read, or None."""
    if kind == "carry":
        return None
    axis = int((kind == "read") != bool(getattr(layer, "transposed", False)))
    # In a grouped convolution the entries of the other axis are the same weights.
    return None if axis == 1 and getattr(layer, "groups", 1) > 1 else axis


def _norm(kind: str, layer: Any, order: int) -> Tensor | None:
    axis = filter_axis(kind, layer)
    if axis is None:
        return None
    rest = [other for other in range(layer.weight.dim()) if other != axis]
    norms: Tensor = torch.linalg.vector_norm(layer.weight, order, dim=rest)
    return norms


def _l1(kind: str, module: Any) -> Tensor | None:
    """Sum of the magnitudes of a filter (Li et al., 2017)."""
    return _norm(kind, module, 1)


def _l2(kind: str, module: Any) -> Tensor | None:
    """Squared Euclidean norm of a filter."""
    norms = _norm(kind, module, 2)
    return None if norms is None else norms.square()


def _bn_scale(kind: str, module: Any) -> Tensor | None:
    """Magnitude of the BatchNorm scale (Liu et al., "network slimming", 2017)."""
    is_batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return module.weight.abs() if kind == "carry" and is_batch_norm and module.affine else None


def _fpgm(kind: str, module: Any) -> Tensor | None:
    """Sum of the distances to the other filters: what lies near the median is redundant (He et al., 2019)."""
    axis = filter_axis(kind, module) if kind == "write" else None
    if axis is None:
        return None
    filters = module.weight.movedim(axis, 0).flatten(1).float()
    return torch.cdist(filters, filters).sum(1)


CRITERIA: Mapping[str, Criterion] = MappingProxyType(
    {"l1": _l1, "l2": _l2, "bn_scale": _bn_scale, "fpgm": _fpgm}
)
"""Importance criteria by name."""
