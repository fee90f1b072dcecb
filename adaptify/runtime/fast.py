"""The fast form of a part of a network: BatchNorm folded, channels_last memory, fused convolutions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from adaptify.graph.trace import Traced
from adaptify.runtime.fuse import can_fuse, fuse_convolutions

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Form:
    """What is done to a network for the sake of speed.

    Attributes:
        fold: BatchNorm becomes part of the layer in front of it.
        channels_last: Feature maps lie in memory with their channels together.
        pack: On a CPU, weights of convolutions are packed once, and what follows them is done as they write.
    """

    fold: bool = True
    channels_last: bool = True
    pack: bool = True


FAST = Form()
"""All of it."""

PLAIN = Form(fold=False, channels_last=False, pack=False)
"""None of it: the network as it was loaded."""


def fast_form(
    traced: Traced, device: torch.device, *, keep: Collection[str] = (), form: Form = FAST
) -> Traced:
    """Return a network that computes the same on `device`, faster; it can no longer be trained.

    Args:
        traced: The network; it is left as it is.
        device: Where it will run.
        keep: Names of nodes whose values must stay what they are (something is attached to them).
        form: What is done to it.
    """
    fast = traced.with_own_tensors()
    fast.root.eval()
    if form.fold:
        fast = fold_batchnorm(fast, keep=keep)
    fast.root.requires_grad_(False).to(device)
    if form.channels_last and has_maps(fast.root):
        fast.root.to(memory_format=torch.channels_last)
    if form.pack and device.type == "cpu" and can_fuse():
        fast = fuse_convolutions(fast, keep=keep)
    return fast


def layout(root: nn.Module, form: Form = FAST) -> torch.memory_format:
    """How the images of a network in `form` lie in memory."""
    return torch.channels_last if form.channels_last and has_maps(root) else torch.contiguous_format


def has_maps(root: nn.Module) -> bool:
    """Whether a network works on feature maps, which are faster with channels last."""
    return any(isinstance(module, nn.Conv2d) for module in root.modules())


def fold_batchnorm(traced: Traced, *, keep: Collection[str] = ()) -> Traced:
    """Fold each BatchNorm that directly follows a convolution or linear layer into that layer.

    Modules that do nothing in evaluation mode (an identity, dropout) leave the graph.

    Args:
        traced: Its root must own its modules: it is modified, and put into evaluation mode.
        keep: Names of nodes whose values must stay what they are (something is attached to them).
    """
    root = traced.root.eval()
    uses = Counter(str(node.target) for node in traced.graph.nodes if node.op == "call_module")
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        if _is_idle(root, node) and node.name not in keep:
            copies[node] = copies[node.all_input_nodes[0]]
            continue
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


def _is_idle(root: nn.Module, node: fx.Node) -> bool:
    """Whether `node` runs a module that passes on what it gets."""
    if node.op != "call_module":
        return False
    module = root.get_submodule(str(node.target))
    return type(module) in _IDLE or (type(module) is nn.Sequential and not len(module))


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
