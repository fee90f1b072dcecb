"""Freezing: gates that are the same for all samples decide for good, and what they closed is removed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptify.assembly import Adapted, reshape
from adaptify.errors import ModelError, TargetError
from adaptify.graph.channel_cost import ChannelCost
from adaptify.graph.channels import Channels, find_channels
from adaptify.graph.masking import mask_channels
from adaptify.graph.program import compile_graph
from adaptify.graph.removal_plan import keep_to_json
from adaptify.graph.selection import TOLERANCE, select_channels
from adaptify.graph.trace import Traced
from adaptify.plan import RemoveBlocks, RemoveChannels, Step
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.gated import GatedModel

_UNGATED = 1e9  # log-odds of channels that no gate closes


@dataclass(frozen=True)
class Frozen:
    """A network without what its gates closed.

    Attributes:
        traced: The network, physically smaller; its tensors are copies.
        steps: What was done, as steps of a plan.
        macs: Its MACs.
        reference: Maps images (N, C, H, W) to what the network must yield: logits with the same channels
            masked, or branches closed.
        moved: Whether the threshold of the policy missed the target, and gates were closed (or opened) in the
            order of their probabilities instead.
    """

    traced: Traced
    steps: tuple[Step, ...]
    macs: int
    reference: Callable[[Tensor], Tensor]
    moved: bool


def freeze(model: GatedModel, target: float | None = None, *, round_to: int = 1) -> Frozen:
    """Remove what the gates of `model` close.

    Args:
        model: A network with data-independent gates.
        target: Fraction of the MACs to keep, met within 1%; None: whatever the policy's threshold leaves.
        round_to: Multiple of channels to keep, where layers are large enough. Layer gates have no channels.

    Raises:
        ModelError: The gates look at samples: what one does not need another may.
        TargetError: No threshold, and no choice of channels in the order of their gates, meets the target.
    """
    if model.per_sample:
        raise ModelError(
            "gates that look at the sample cannot be frozen: what one sample does not need, another may",
            "Train independent gates: gates.kind=independent.",
        )
    model.eval()
    odds = model.odds().double()
    gates = model.policy.decide(odds).long()
    if all(site.position == "layer" for site in model.sites):
        return _freeze_blocks(model, odds, gates, target)
    return _freeze_channels(model, odds, gates, target, round_to)


def _freeze_blocks(model: GatedModel, odds: Tensor, gates: Tensor, target: float | None) -> Frozen:
    cost = model.gate_cost
    moved = False
    if target is not None and not _meets(int(cost(gates)), cost.total, target):
        moved = True
        order = odds.argsort(descending=True)
        # Rank r keeps the r blocks with the highest probabilities.
        choices = [torch.zeros_like(gates).index_fill(0, order[:count], 1) for count in range(len(odds) + 1)]
        gates = min(choices, key=lambda choice: abs(int(cost(choice)) - target * cost.total))
        if not _meets(int(cost(gates)), cost.total, target):
            raise TargetError(
                f"no number of blocks is within 1% of {target:.3g} of the MACs; the nearest is "
                f"{int(cost(gates)) / cost.total:.3g}",
                "Ask for that, or use channel gates.",
            )
    closed = [site.name for site, gate in zip(model.sites, gates.tolist(), strict=True) if not gate]
    step = RemoveBlocks(blocks=tuple(closed))
    fixed = gates.float()

    def reference(images: Tensor) -> Tensor:
        return model.decide(images, lambda odds: fixed).logits

    return Frozen(reshape(model.backbone(), [step]), (step,), int(cost(gates)), reference, moved)


def _freeze_channels(
    model: GatedModel, odds: Tensor, gates: Tensor, target: float | None, round_to: int
) -> Frozen:
    channels = find_channels(model.backbone())
    cost = ChannelCost(channels, model.cost)
    keep = {name: mask.bool() for name, mask in _by_channel(model, gates.double(), 1.0).items()}
    macs = cost.macs(keep)
    goal = macs / cost.total if target is None else target
    moved = not _meets(macs, cost.total, goal)
    if moved or not _is_rounded(channels, keep, round_to):
        scores = {group.name: torch.full((group.size,), _UNGATED) for group in channels.removable}
        scores |= {name: score.float() for name, score in _by_channel(model, odds, _UNGATED).items()}
        # What has no gate is not for the taking.
        least = {group.name: group.size for group in channels.removable}
        least |= {site.name: site.always_open for site in model.sites}
        selection = select_channels(cost, scores, goal, round_to=round_to, least=least)
        keep, macs = selection.keep, selection.macs
    step = RemoveChannels.model_validate({"keep": keep_to_json(channels, keep)})
    masked = mask_channels(channels, keep)
    run = compile_graph(masked.graph)
    root = masked.root.eval()
    return Frozen(reshape(model.backbone(), [step]), (step,), macs, lambda images: run(root, images), moved)


def _by_channel(model: GatedModel, values: Tensor, always: float) -> dict[str, Tensor]:
    """Site name -> (size,): for each channel the value (K,) of its gate, `always` for those without one."""
    found = {}
    start = 0
    for site in model.sites:
        own = torch.cat([values.new_tensor([always]), values[start : start + site.gates]])
        found[site.name] = own[torch.tensor(site.gate_of(), dtype=torch.int64)]
        start += site.gates
    return found


def _meets(macs: int, total: int, target: float) -> bool:
    return abs(macs - target * total) <= TOLERANCE * target * total


def _is_rounded(channels: Channels, keep: dict[str, Tensor], round_to: int) -> bool:
    return all(int(mask.sum()) % channels.by_name[name].chunk(round_to) == 0 for name, mask in keep.items())


def static_network(model: Adapted) -> Traced | None:
    """Return the network of a model that computes the same for every sample; None for others.

    Gates that look at nothing are frozen: what they close is removed.

    Raises:
        ModelError: What gates close cannot be removed.
    """
    if isinstance(model, AdaptiveModel):
        return None if model.exits else model.backbone()
    if model.policy.draws:
        return None
    # Where saliences are all at 1 is not known before an image is seen.
    if model.policy.variants() and model.policy == model.policy.variants().get("always-on"):
        return model.backbone()
    return None if model.per_sample else freeze(model).traced


def without_fixed_gates(model: Adapted) -> Adapted:
    """Return `model` without gates that are the same for all samples: what they close is removed.

    Raises:
        ModelError: It cannot be removed.
    """
    network = static_network(model)
    return model if network is None else AdaptiveModel(network).eval()
