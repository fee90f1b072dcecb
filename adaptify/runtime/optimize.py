"""The fast form of a network for inference: BatchNorm folded, channels_last memory, fused convolutions."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from adaptify.graph.trace import Traced
from adaptify.runtime.adaptive import AdaptiveModel, Exit
from adaptify.runtime.fuse import can_fuse, fuse_convolutions

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def optimize(model: AdaptiveModel, device: torch.device | str = "cpu") -> AdaptiveModel:
    """Return a copy of `model` that computes the same function faster; it can no longer be trained.

    Its outputs differ from those of `model` by rounding only. The copy owns its tensors, and stays on
    `device`: on a CPU its convolutions are packed for it.
    """
    device = torch.device(device)
    backbone = model.backbone()
    own = backbone.with_own_tensors()
    sites = {item.site.node for item in model.exits}
    fast = fold_batchnorm(own, keep=sites)
    fast.root.requires_grad_(False).to(device)
    has_maps = any(isinstance(module, nn.Conv2d) for module in fast.root.modules())
    if has_maps:
        fast.root.to(memory_format=torch.channels_last)
    if device.type == "cpu" and can_fuse():
        fast = fuse_convolutions(fast, keep=sites)
    exits = [
        Exit(item.site, copy.deepcopy(item.head).requires_grad_(False).to(device)) for item in model.exits
    ]
    result = AdaptiveModel(fast, exits, model.policy)
    result.memory_format = torch.channels_last if has_maps else torch.contiguous_format
    # Folding and fusing change how the same products are computed, not how many there are.
    result.cost, result.gate_macs, result.plan = model.cost, model.gate_macs, model.plan
    return result


def fold_batchnorm(traced: Traced, *, keep: Collection[str] = ()) -> Traced:
    """Fold each BatchNorm that directly follows a convolution or linear layer into that layer.

    Args:
        traced: Its root must own its modules: it is modified, and put into evaluation mode.
        keep: Names of nodes whose values must stay what they are (something is attached to them).
    """
    root = traced.root.eval()
    uses = Counter(str(node.target) for node in traced.graph.nodes if node.op == "call_module")
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        producer = _folds_into(root, node, uses)
        if producer is None or node.name in keep or producer.name in keep:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            continue
        layer, norm = root.get_submodule(str(producer.target)), root.get_submodule(str(node.target))
        fuse: Callable[..., nn.Module] = (
            fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        )
        root.set_submodule(str(producer.target), fuse(layer, norm))
        root.set_submodule(str(node.target), nn.Identity())
        copies[node] = copies[producer]
    return replace(traced, graph=graph)


def _folds_into(root: nn.Module, node: fx.Node, uses: Counter[str]) -> fx.Node | None:
    """The layer that the BatchNorm `node` can be folded into: it feeds nothing else, and both run once."""
    if node.op != "call_module" or not isinstance(root.get_submodule(str(node.target)), _NORMS):
        return None
    producer = node.all_input_nodes[0]
    if producer.op != "call_module" or len(producer.users) != 1:
        return None
    if uses[str(producer.target)] != 1 or uses[str(node.target)] != 1:
        return None
    layer = root.get_submodule(str(producer.target))
    # An exact type: a subclass may do more than its weights say.
    foldable = type(layer) in _CONVOLUTIONS or (type(layer) is nn.Linear and len(producer.meta["shape"]) == 2)
    return producer if foldable else None
