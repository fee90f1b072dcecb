"""What methods with gates that close something share."""

from __future__ import annotations

import torch

from adaptify.graph.gate_sites import GateSite
from adaptify.graph.program import compile_graph
from adaptify.plan import GatePlace
from adaptify.runtime.gated import GatedModel
from adaptify.training.objective import Distillation
from adaptify.training.options import Distill


def gate_place(site: GateSite) -> GatePlace:
    """The site as a plan names it."""
    return GatePlace(
        name=site.name,
        position=site.position,
        size=site.size,
        filters=site.filters,
        always_open=site.always_open,
        block=site.block.name if site.block is not None else None,
    )


def distil_from_backbone(
    options: Distill | None, model: GatedModel, device: torch.device
) -> Distillation | None:
    """Distil from a copy of the network as it is now, without its gates; None if nothing is asked for."""
    if options is None:
        return None
    backbone = model.backbone()
    root = backbone.with_own_tensors().root.to(device).eval().requires_grad_(False)
    run = compile_graph(backbone.graph)
    return Distillation(lambda images: run(root, images), options.weight, options.temperature)
