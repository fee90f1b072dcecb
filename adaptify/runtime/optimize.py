"""The fast form of a network for inference, whatever kind of gates it has."""

from __future__ import annotations

import copy
from typing import overload

import torch

from adaptify.runtime.adaptive import AdaptiveModel, Exit
from adaptify.runtime.fast import fast_form, has_maps
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.skipping.costs import CostTable
from adaptify.runtime.skipping.model import SkippingModel


@overload
def optimize(model: AdaptiveModel, device: torch.device | str = ...) -> AdaptiveModel: ...
@overload
def optimize(model: GatedModel, device: torch.device | str = ...) -> SkippingModel: ...
def optimize(
    model: AdaptiveModel | GatedModel, device: torch.device | str = "cpu"
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
    fast = fast_form(backbone, device, keep={item.site.node for item in model.exits})
    exits = [
        Exit(item.site, copy.deepcopy(item.head).requires_grad_(False).to(device)) for item in model.exits
    ]
    result = AdaptiveModel(fast, exits, model.policy)
    result.memory_format = torch.channels_last if has_maps(backbone.root) else torch.contiguous_format
    # Folding and fusing change how the same products are computed, not how many there are.
    result.cost, result.gate_macs, result.plan = model.cost, model.gate_macs, model.plan
    return result
