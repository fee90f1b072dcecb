"""How much each channel matters to the loss, judged by gradients on labelled images.

To close channel c is to multiply what its readers see of it by m_c = 0 instead of 1 (as
`graph.masking.mask_channels` does). To first order that changes the loss L by -dL/dm_c, and dL/dm_c is the
sum of weight times gradient over all weights that read c. Its square, averaged over batches, is the
importance (Molchanov et al., "Importance estimation for neural network pruning", 2019, equations 7 and 8,
with the gate at the readers). One unit for the whole network: groups can be compared as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptify.graph.channels import Channels
from adaptify.graph.copying import share_copy
from adaptify.graph.importance import filter_axis
from adaptify.graph.program import compile_graph


def taylor_scores(
    channels: Channels, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return the scores (size,) of every removable group, by name; higher is more important.

    The loss is the cross-entropy, with BatchNorm in evaluation mode. The network is left as it is.

    Args:
        channels: The channels of the network, with its trained weights.
        batches: Images (B, C, H, W) and labels (B,) int64, on `device`. Every batch counts the same.
        device: Where to compute.
    """
    traced = channels.traced
    # A copy that shares its tensors, where it can: what requires a gradient here does not in the network.
    root = share_copy(traced.root, torch.Tensor.detach).to(device).eval().requires_grad_(False)
    forward = compile_graph(traced.graph)
    readers: dict[str, Any] = {name: root.get_submodule(name) for name in _readers(channels)}
    weights: list[Tensor] = [layer.weight.requires_grad_(True) for layer in readers.values()]
    scores = {group.name: torch.zeros(group.size) for group in channels.removable}
    count = 0
    for images, labels in batches:
        count += 1
        loss = F.cross_entropy(forward(root, images), labels)
        found = torch.autograd.grad(loss, weights, materialize_grads=True)
        slopes = {
            name: _slopes(layer, gradient)
            for (name, layer), gradient in zip(readers.items(), found, strict=True)
        }
        for group in channels.removable:
            of_group = [
                slopes[m.target][m.positions].sum(1) for m in group.of_kind("read") if m.target in slopes
            ]
            scores[group.name] += sum(of_group, torch.zeros(group.size)).square()
    return {name: total / max(count, 1) for name, total in scores.items()}


def _readers(channels: Channels) -> list[str]:
    """Names of the layers that read channels which can be removed, each with a column for each of them.

    A grouped convolution has none. What it makes of a channel is the same channel, and is read further on.
    """
    root = channels.traced.root
    names = dict.fromkeys(member.target for group in channels.removable for member in group.of_kind("read"))
    return [name for name in names if filter_axis("read", root.get_submodule(name)) is not None]


def _slopes(layer: Any, gradient: Tensor) -> Tensor:
    """dL/dm_c for every channel c that `layer` reads, as far as it goes through this layer."""
    axis = filter_axis("read", layer)
    product: Tensor = layer.weight.detach() * gradient
    return product.movedim(axis or 0, 0).flatten(1).sum(1).float().cpu()
