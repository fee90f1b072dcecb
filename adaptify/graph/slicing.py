"""Smaller copies of a module tree: the tensors of its layers cut down to the channels that stay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from adaptify.graph.adapters import ADAPTERS, ChannelGather
from adaptify.graph.channels import Channels
from adaptify.graph.copying import share_copy
from adaptify.graph.movement import whole_axis
from adaptify.graph.propagation import Use, attribute


def slice_modules(channels: Channels, kept: Tensor, targets: Iterable[str]) -> nn.Module:
    """Return a copy of the module tree in which `targets` keep only some channels.

    All tensors are copies. Tensors that were shared (tied weights) are shared again.

    Args:
        channels: The channels of the network.
        kept: (classes,) bool, which stay.
        targets: Qualified names of the modules and parameters that still run.
    """
    wanted = set(targets)
    uses = [use for use in channels.propagation.uses.values() if use.target in wanted]
    slices = _Slices(channels, kept)
    for use in uses:
        if not isinstance(attribute(channels.traced.root, use.target), ADAPTERS):
            slices.add(use)
    root = share_copy(channels.traced.root, slices.cut)
    for use in uses:
        if use.kind != "attribute":
            stays = int(kept[channels.classes.of[use.labels]].sum())
            _state_size(root.get_submodule(use.target), use.kind, stays, len(use.labels))
    for target in wanted:
        _cut_adapter(channels, kept, root, target)
    return root


def _cut_adapter(channels: Channels, kept: Tensor, root: nn.Module, target: str) -> None:
    adapter = attribute(root, target)
    if isinstance(adapter, ADAPTERS):
        reads, writes = (
            kept[channels.classes.of[channels.propagation.uses[kind, target].labels]]
            for kind in ("read", "write")
        )
        adapter.cut(*((reads, writes) if isinstance(adapter, ChannelGather) else (writes, reads)))


def _state_size(module: Any, kind: str, stays: int, before: int) -> None:
    """Make the sizes that a module states agree with the `stays` of `before` channels it has."""
    if kind == "carry":
        for name in ("num_features", "num_channels", "num_parameters"):
            if hasattr(module, name):
                setattr(module, name, stays)
        if hasattr(module, "num_groups"):
            module.num_groups = module.num_groups * stays // before
        return
    for name in ("out_channels", "out_features") if kind == "write" else ("in_channels", "in_features"):
        if hasattr(module, name):
            setattr(module, name, stays)
    if kind == "write" and getattr(module, "groups", 1) > 1:
        module.groups = module.groups * stays // before


class _Slices:
    """Which tensors keep which rows, columns, ...; by identity, so that shared tensors stay shared."""

    def __init__(self, channels: Channels, kept: Tensor) -> None:
        self._channels = channels
        self._kept = kept
        self._wanted: dict[int, dict[int, Tensor]] = {}

    def add(self, use: Use) -> None:
        """Note what a use of channels means for its tensors."""
        classes = self._channels.classes.of[use.labels]
        stays = self._kept[classes]
        if bool(stays.all()):
            return
        index = stays.nonzero().flatten()
        owner: Any = attribute(self._channels.traced.root, use.target)
        if use.kind == "attribute":
            axis = whole_axis(classes.view(owner.shape), self._channels.classes.frozen)
            if axis is not None:
                rows = stays.view(owner.shape).movedim(axis, -1).reshape(-1, owner.shape[axis])
                self._set(owner, axis, rows.all(0).nonzero().flatten())
        elif use.kind == "carry":
            for tensor in (*owner.parameters(recurse=False), *owner.buffers(recurse=False)):
                if tensor.dim() and tensor.shape[0] == len(use.labels):
                    self._set(tensor, 0, index)
        else:
            self._add_layer(use.kind, owner, index)

    def _add_layer(self, kind: str, layer: Any, index: Tensor) -> None:
        writes, reads = (1, 0) if getattr(layer, "transposed", False) else (0, 1)
        grouped = getattr(layer, "groups", 1) > 1
        # A grouped weight has all channels on its first axis; the second is one group wide.
        if kind == "write" and (not grouped or writes == 0):
            self._set(layer.weight, writes, index)
        if kind == "read" and (not grouped or reads == 0):
            self._set(layer.weight, reads, index)
        if kind == "write" and layer.bias is not None:
            self._set(layer.bias, 0, index)

    def _set(self, tensor: Tensor, axis: int, index: Tensor) -> None:
        self._wanted.setdefault(id(tensor), {})[axis] = index

    def cut(self, tensor: Tensor) -> Tensor:
        """Return the smaller copy of `tensor`."""
        wanted = self._wanted.get(id(tensor))
        result = tensor.detach()
        if not wanted:
            return result.clone()
        for axis, index in wanted.items():
            result = result.index_select(axis, index.to(tensor.device))
        # Selecting from a channels_last weight gives another layout than the rest of the network has.
        if result.dim() == 4 and not tensor.is_contiguous():
            result = result.contiguous(memory_format=torch.channels_last)
        return result
