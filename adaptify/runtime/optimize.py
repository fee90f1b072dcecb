"""The fast form of a network for inference, whatever kind of gates it has."""

from __future__ import annotations

import copy
from typing import overload

import torch
from torch import nn

from adaptify.runtime.adaptive import AdaptiveModel, Exit
from adaptify.runtime.fast import FAST, Form, fast_form, layout
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.skipping.costs import CostTable
from adaptify.runtime.skipping.model import SkippingModel


@overload
def optimize(
    model: AdaptiveModel, device: torch.device | str = ..., *, form: Form = ...
) -> AdaptiveModel: ...
@overload
def optimize(model: GatedModel, device: torch.device | str = ...) -> SkippingModel: ...
def optimize(
    model: AdaptiveModel | GatedModel, device: torch.device | str = "cpu", *, form: Form = FAST
) -> AdaptiveModel | SkippingModel:
    """Return a copy of `model` that computes the same function faster; it can no longer be trained.

    Its outputs differ from those of `model` by rounding only. The copy owns its tensors, and stays on
    `device`: on a CPU its convolutions are packed for it. Networks with gates that look at samples leave out
    what the gates close; what that saves is measured on this machine when it is first seen (seconds), and
    remembered.

    Raises:
        ModelError: The gates are the same for all samples: such a network is frozen instead.
    """
    device = torch.device(device)
    if isinstance(model, GatedModel):
        skipping = SkippingModel(model, device)
        with CostTable() as table:
            skipping.measure(table)
        return skipping
    backbone = model.backbone()
    fast = fast_form(backbone, device, keep=model.exit_nodes, form=form)
    exits = [
        Exit(item.site, _head_for_inference(item.head, device))
        for item in model.exits
        if item.head is not None
    ]
    # Folding and fusing change how the same products are computed, not how many there are.
    result = AdaptiveModel(fast, exits, model.policy, boost=model.boost, cost=model.cost)
    result.exits = tuple(
        Exit(item.site, head.head) for item, head in zip(model.exits, result.exits, strict=True)
    )
    result.memory_format = layout(backbone.root, form)
    result.head_macs, result.plan = model.head_macs, model.plan
    return result


def _head_for_inference(head: nn.Module, device: torch.device) -> nn.Module:
    return copy.deepcopy(head).requires_grad_(False).to(device)
