"""How much training would still change each block of a network (Wang et al., SGAD, Fig. 4)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptify.graph.copying import share_copy
from adaptify.graph.program import compile_graph
from adaptify.graph.sites import BlockSite, nodes_between
from adaptify.graph.trace import Traced
from adaptify.runtime.gated import GatedModel


def block_gradients(
    model: GatedModel, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Return the mean absolute gradient of the parameters of each block that a layer gate closes.

    The gradient is that of the mean cross-entropy over all images, of the network with all blocks run (no
    gates) and in evaluation mode: how the images are cut into batches makes no difference. A branch without
    parameters has 0. The network is left as it is, without gradients.

    Args:
        model: The network; blocks are those of its sites for layers, in their order.
        batches: Images (B, C, H, W) and labels (B,) int64, on `device`; none give zeros.
        device: Where to compute.
    """
    traced = model.backbone()
    # A copy that shares its tensors: what requires a gradient here does not in the network.
    root = share_copy(traced.root, torch.Tensor.detach).to(device).eval().requires_grad_(False)
    forward = compile_graph(traced.graph)
    blocks = [site.block for site in model.sites if site.position == "layer" and site.block is not None]
    parts = {block.name: _branch_parameters(traced, block, root) for block in blocks}
    learned = list(dict.fromkeys(item for part in parts.values() for item in part))
    for parameter in learned:
        parameter.requires_grad_(True)
    totals = [torch.zeros_like(parameter) for parameter in learned]
    images_seen = 0
    for images, labels in batches if learned else ():
        images_seen += len(labels)
        loss = F.cross_entropy(forward(root, images).float(), labels, reduction="sum")
        found = torch.autograd.grad(loss, learned, materialize_grads=True)
        for total, gradient in zip(totals, found, strict=True):
            total += gradient
    size = {
        item: float((total / max(images_seen, 1)).abs().double().sum())
        for item, total in zip(learned, totals, strict=True)
    }
    return {
        name: sum(size[item] for item in part) / max(sum(item.numel() for item in part), 1)
        for name, part in parts.items()
    }


def _branch_parameters(traced: Traced, block: BlockSite, root: nn.Module) -> list[nn.Parameter]:
    """The parameters of the branch of a block, as `root` has them."""
    inside = nodes_between(traced.node(block.source), traced.node(block.branch))
    names: list[str] = []
    for node in traced.graph.nodes:
        if node.op == "call_module" and node in inside:
            module = root.get_submodule(str(node.target))
            names += [f"{node.target}.{name}" for name, _ in module.named_parameters()]
        elif node.op == "get_attr" and any(user in inside for user in node.users):
            names.append(str(node.target))
    found = dict(root.named_parameters(remove_duplicate=False))
    return list(dict.fromkeys(found[name] for name in names if name in found))
