"""Networks with gates, for the tests of every room."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adaptify.assembly import assemble
from adaptify.gates.gumbel import DependentGates, IndependentGates
from adaptify.graph.cost import CostModel
from adaptify.graph.gating import slices_of
from adaptify.graph.trace import Traced, trace
from adaptify.methods.gumbel import Gates, Gumbel, Train
from adaptify.models.registry import Architecture, resolve
from adaptify.plan import Plan, Step
from adaptify.runtime.gated import GatedModel

DIGITS = resolve("adaptify:digits_resnet")


def gate_steps(traced: Traced, cost: CostModel | None = None, **options: Any) -> tuple[Step, ...]:
    """The steps that put the gates of `options` (as in a recipe) into `traced`."""
    return Gumbel(Gates.model_validate(options), Train()).place(traced, cost or CostModel(traced), 10)


def gated(traced: Traced, cost: CostModel | None = None, **options: Any) -> GatedModel:
    """`traced` with the gates of `options`, in evaluation mode; it shares the tensors of `traced`."""
    steps = gate_steps(traced, cost, **options)
    torch.manual_seed(0)
    model = assemble(traced, steps)
    assert isinstance(model, GatedModel)
    return model.eval()


def gated_digits(architecture: Architecture = DIGITS, **options: Any) -> GatedModel:
    """The small network of the digits with gates, random weights and a plan, so that it can be saved."""
    torch.manual_seed(0)
    traced = trace(architecture.build().eval(), architecture.input.shape)
    model = gated(traced, **options)
    model.plan = Plan(architecture=architecture.to_json(), steps=gate_steps(traced, **options))
    return model


def shake(model: GatedModel, seed: int = 0, shift: float = 0.5) -> GatedModel:
    """Let gates be open and closed as chance will have it: most are open for `shift` above 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for decider in model.deciders:
            module = decider.module
            if isinstance(module, IndependentGates):
                odds = torch.randn(module.logits.shape[1], generator=generator) + shift
                module.logits.copy_(torch.stack([-odds, odds]))
            else:
                assert isinstance(module, DependentGates)
                module.squeeze.weight.normal_(generator=generator)
                module.norm.running_mean.normal_(0, 0.1, generator=generator)
                module.weight.normal_(generator=generator)
                module.bias.normal_(generator=generator)
    return model


def close(model: GatedModel, *sites: str) -> GatedModel:
    """Close all gates of some sites, and open all others; for gates that look at nothing."""
    (decider,) = model.deciders
    module = decider.module
    assert isinstance(module, IndependentGates)
    names = {site.name for site in decider.sites}
    assert names >= set(sites), sorted(set(sites) - names)
    with torch.no_grad():
        for site, place in zip(decider.sites, slices_of(decider.sites), strict=True):
            sign = -1.0 if site.name in sites else 1.0
            module.logits[:, place] = torch.tensor([[-4.0], [4.0]]) * sign
    return model


def fixed(gates: Tensor) -> Any:
    """A way to decide that always gives `gates`, (K,), for the one decider of a network."""
    return lambda odds: gates


def by_channel(model: GatedModel, gates: Tensor) -> dict[str, Tensor]:
    """Site name -> (size,) bool: what gates (K,) leave open of each channel group."""
    masks = {}
    start = 0
    for site in model.sites:
        own = torch.cat([gates.new_ones(1), gates[start : start + site.gates]])
        masks[site.name] = own[torch.tensor(site.gate_of())].bool()
        start += site.gates
    return masks


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest value that is wanted."""
    assert torch.isfinite(wanted).all()
    scale = float(wanted.abs().max())
    assert scale > 1e-3
    return float((found - wanted).abs().max()) / scale
