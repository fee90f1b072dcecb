"""Closing channels without removing them: the reference that surgery is compared with."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from adaptify.graph.adapters import ADAPTERS
from adaptify.graph.channels import Channels
from adaptify.graph.copying import share_copy
from adaptify.graph.shapes import annotate_shapes
from adaptify.graph.trace import Traced


def mask_channels(channels: Channels, keep: Mapping[str, Tensor]) -> Traced:
    """Return the network with the input of every layer multiplied by a mask: closed channels are not read.

    The mask is on the side of the readers, so what is closed contributes nothing whatever lies between:
    BatchNorm offsets, concatenations, sums. The result shares its tensors with the given network.

    Raises:
        ModelError: The masks do not fit the groups.
    """
    traced = channels.traced
    kept = channels.kept_classes(keep)
    root = share_copy(traced.root)
    device = next(root.parameters()).device
    masks = nn.Module()
    root.add_module("channel_masks", masks)
    graph = copy.deepcopy(traced.graph)
    nodes = {node.name: node for node in graph.nodes}
    for use in channels.propagation.uses.values():
        if use.kind != "read" or bool(kept[channels.classes.of[use.labels]].all()):
            continue
        mask = along_channels(
            kept[channels.classes.of[use.labels]], root.get_submodule(use.target), use.nodes[0]
        )
        mask = mask.to(device)
        name = f"mask_{len(masks._buffers)}"  # dotted names are not allowed, and may be alike without dots
        masks.register_buffer(name, mask, persistent=False)
        for node in use.nodes:
            _multiply_input(graph, nodes[node.name], f"channel_masks.{name}")
    annotate_shapes(root, graph, traced.input_shape)
    return Traced(root, graph, traced.input_shape, traced.notes)


def along_channels(mask: Tensor, layer: nn.Module, node: fx.Node) -> Tensor:
    """Return the mask (n,) of what `layer` reads in a shape that its input in `node` can be multiplied by."""
    axis = -1 if isinstance(layer, nn.Linear) else layer.axis if isinstance(layer, ADAPTERS) else 1
    source = node.args[0]
    assert isinstance(source, fx.Node)
    after = (len(source.meta["shape"]) - 1 - axis) if axis >= 0 else 0
    return mask.view(-1, *(1 for _ in range(after)))


def _multiply_input(graph: fx.Graph, node: fx.Node, mask: str) -> None:
    value = node.args[0]
    assert isinstance(value, fx.Node)
    with graph.inserting_before(node):
        constant = graph.get_attr(mask)
        masked = graph.call_function(torch.mul, (value, constant))
    for new, label in ((constant, "mask"), (masked, "masked")):
        new.meta.update(path=node.meta["path"], name=f"{node.meta['name']}.{label}")
    node.replace_input_with(value, masked)
