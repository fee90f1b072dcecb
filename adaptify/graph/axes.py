"""Which axis of a tensor holds its channels."""

from __future__ import annotations

from collections import deque

import torch
from torch import fx, nn
from torch.nn import functional

from adaptify.graph.trace import Traced

_FIRST = (
    nn.Conv1d,
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.GroupNorm,
    nn.InstanceNorm2d,
)
_LAST = (nn.Linear, nn.LayerNorm, nn.MultiheadAttention)
_FIRST_FUNCTIONS = {functional.conv2d, functional.batch_norm, functional.group_norm, torch.conv2d}
_LAST_FUNCTIONS = {functional.linear, functional.layer_norm}
_RESHAPES = {torch.flatten, torch.reshape, "flatten", "reshape", "view"}


def channel_axis(traced: Traced, node: fx.Node) -> int | None:
    """Return 1 or -1, the channel axis of the batched tensor that `node` yields, or None when unknown.

    The layers that make and read the tensor tell: convolutions and batch normalisation keep channels on
    axis 1, linear layers and layer normalisation on the last. Operations that keep the shape, and reshapes
    that leave the axis alone, are looked through in both directions, nearest first.
    """
    if len(node.meta["shape"]) == 2:
        return 1
    seen = {node}
    pending = deque([(node, frozenset({1, -1}))])
    while pending:
        current, possible = pending.popleft()
        for neighbour in (current, *current.users):
            axis = _evidence(traced, neighbour, current)
            if axis in possible:
                return axis
        steps = [(parent, current) for parent in current.all_input_nodes]
        steps += [(current, user) for user in current.users]
        for parent, child in steps:
            neighbour = child if parent is current else parent
            kept = possible & _kept_axes(parent, child)
            if kept and neighbour not in seen:
                seen.add(neighbour)
                pending.append((neighbour, kept))
    return None


def _kept_axes(parent: fx.Node, child: fx.Node) -> frozenset[int]:
    """The axes, of 1 and -1, that `child` has as `parent` has them."""
    before, after = parent.meta["shape"], child.meta["shape"]
    if before == after:
        return frozenset({1, -1})
    if child.target not in _RESHAPES or not before or not after or min(len(before), len(after)) < 3:
        return frozenset()
    if before[0] != after[0]:
        return frozenset()
    return frozenset(axis for axis in (1, -1) if before[axis] == after[axis])


def _evidence(traced: Traced, node: fx.Node, tensor: fx.Node) -> int | None:
    """What `node`, which makes `tensor` or reads it, says about the tensor's channel axis."""
    if node.op == "call_module":
        module = traced.root.get_submodule(str(node.target))
        if isinstance(module, _FIRST):
            return 1
        if isinstance(module, _LAST):
            return -1
    if node.target in _FIRST_FUNCTIONS:
        return 1
    if node.target in _LAST_FUNCTIONS:
        return -1
    if node is tensor and node.target in (torch.cat, torch.concat):
        axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        dimensions = len(tensor.meta["shape"])
        if isinstance(axis, int) and axis % dimensions in (1, dimensions - 1):
            return 1 if axis % dimensions == 1 else -1
    return None
