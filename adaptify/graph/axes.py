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


def channel_axis(traced: Traced, node: fx.Node) -> int | None:
    """Return 1 or -1, the channel axis of the batched tensor that `node` yields, or None when unknown.

    The layers that make and read the tensor tell: convolutions and batch normalisation keep channels on
    axis 1, linear layers and layer normalisation on the last. Operations that keep the shape are
    looked through in both directions, nearest first.
    """
    shape = node.meta["shape"]
    if len(shape) == 2:
        return 1
    seen = {node}
    pending = deque([node])
    while pending:
        current = pending.popleft()
        for neighbour in (current, *current.users):
            axis = _evidence(traced, neighbour, current)
            if axis is not None:
                return axis
        for neighbour in (*current.all_input_nodes, *current.users):
            if neighbour not in seen and neighbour.meta["shape"] == shape:
                seen.add(neighbour)
                pending.append(neighbour)
    return None


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
