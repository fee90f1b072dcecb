"""Dead blocks: residual branches that no image runs are removed from a network whose gates look at images.

What is left decides as before: the other gates keep their weights, and see what they saw.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from adaptify.assembly import assemble, reshape
from adaptify.data import Split
from adaptify.errors import ModelError, TargetError
from adaptify.graph.cost import CostModel
from adaptify.graph.gate_sites import GateSite
from adaptify.graph.gating import Decider
from adaptify.graph.sites import find_blocks
from adaptify.graph.trace import Traced
from adaptify.pipeline.pruning import TOLERANCE
from adaptify.plan import GatePlace, GatesStep, PlaceMaskNet, RemoveBlocks, Step
from adaptify.runtime.gated import GatedModel
from adaptify.training.gate_records import observe_gates

JUDGED_BY = "gates that open for no held-out image"
"""What a report says blocks were judged by."""

_AGREE = 0.99  # of the images that run no dead block: rounding may tip what is on the threshold


@dataclass(frozen=True)
class Verified:
    """A network without its dead blocks, held against the whole one.

    Attributes:
        would_run: Samples that run a block which was dead for the held-out ones.
        difference: The largest difference of logits for the others, relative to the largest logit.
    """

    would_run: int
    difference: float


def can_have_dead_blocks(model: GatedModel | None) -> bool:
    """Whether gates look at images and close whole branches."""
    return model is not None and model.per_sample and any(site.position == "layer" for site in model.sites)


def find_dead_blocks(
    model: GatedModel, split: Split, *, batch_size: int, device: torch.device
) -> tuple[str, ...]:
    """Names of the blocks whose branch no sample of `split` runs."""
    found = observe_gates(model.to(device), split, batch_size=batch_size, device=device)
    return tuple(
        site.name
        for site, share in zip(model.sites, found.site_open, strict=True)
        if site.position == "layer" and share == 0
    )


def without_blocks(
    model: GatedModel, traced: Traced, step: GatesStep, dead: Collection[str]
) -> tuple[GatedModel, tuple[Step, ...]]:
    """Return the network without the branches of some blocks and without their gates, and the steps to it.

    Args:
        model: A network with gates that look at samples.
        traced: The same without gates.
        step: The step of its plan that placed them.
        dead: Names of the blocks.

    Raises:
        ModelError: No gate would be left.
    """
    removal = RemoveBlocks(blocks=tuple(dead))
    left = tuple(place for place in step.sites if place.block not in dead)
    if not left:
        raise ModelError(
            "every block that has a gate is dead: nothing would be left to decide",
            "Train on with gates that close less; for SGAD, a smaller train.max_drop.",
        )
    # A block may be called otherwise once another one of the same module is gone.
    ends = {block.add: block.name for block in find_blocks(traced, CostModel(traced))}
    reduced = reshape(traced, [removal])
    names = {ends[block.add]: block.name for block in find_blocks(reduced, CostModel(reduced))}
    sites = tuple(_renamed(place, names) for place in left)
    changed: GatesStep = step.model_copy(update={"sites": sites})
    if isinstance(changed, PlaceMaskNet):
        # What entered the first block is still there, even if that block is not.
        changed = changed.model_copy(update={"source": model.deciders[0].source})
    steps = (removal, changed)
    smaller = assemble(traced.with_own_tensors(), steps, model.policy_json()).eval()
    assert isinstance(smaller, GatedModel)
    origin = {_key(new): _key(old) for new, old in zip(sites, left, strict=True)}
    for decider in smaller.deciders:
        _copy_gates(model.deciders, decider, {origin[_key(site)] for site in decider.sites})
    return smaller, steps


def _renamed(place: GatePlace, names: Mapping[str, str]) -> GatePlace:
    assert place.block is not None
    name = names[place.block]
    own = {"name": name} if place.position == "layer" else {}
    return place.model_copy(update={"block": name, **own})


def _key(site: GateSite | GatePlace) -> tuple[str, str]:
    return site.name, site.position


def _is_in(site: GateSite, blocks: Collection[str]) -> bool:
    return site.block is not None and site.block.name in blocks


def _copy_gates(trained: Collection[Decider], decider: Decider, wanted: Collection[tuple[str, str]]) -> None:
    """Give a decider the weights of the gates at the sites `wanted`, all of which one trained decider has."""
    for other in trained:
        owners = [_key(site) for site in other.sites for _ in range(site.gates)]
        rows = [row for row, owner in enumerate(owners) if owner in wanted]
        if not rows:
            continue
        module: nn.Module = other.module
        if len(rows) < other.gates:
            module = module.keep_gates(rows)  # type: ignore[operator]
        decider.module.load_state_dict(module.state_dict())


def verify_on_samples(
    model: GatedModel,
    smaller: GatedModel,
    dead: Collection[str],
    split: Split,
    *,
    batch_size: int,
    device: torch.device,
) -> Verified:
    """Hold the smaller network against the one that it came from, under their policies, sample by sample.

    Raises:
        TargetError: Where no removed branch would have run, other gates or the logits are not the same.
    """
    gone = torch.cat(
        [torch.full((site.gates,), _is_in(site, dead), dtype=torch.bool) for site in model.sites]
    ).to(device)
    would_run = alike = 0
    difference = 0.0
    model.to(device).eval()
    smaller.to(device).eval()
    with torch.inference_mode():
        for images, _ in split.batches(batch_size, device=device):
            before, after = model.run(images), smaller.run(images)
            closed = (before.gates[:, gone] == 0).all(1)
            same = closed & (before.gates[:, ~gone] == after.gates).all(1)
            would_run += int((~closed).sum())
            alike += int(same.sum())
            if same.any():
                wanted, found = before.logits[same], after.logits[same]
                scale = wanted.abs().max().clamp_min(torch.finfo(wanted.dtype).tiny)
                difference = max(difference, float((found - wanted).abs().max() / scale))
    if alike < _AGREE * (len(split) - would_run) or not difference <= TOLERANCE:
        raise TargetError(
            f"without its dead blocks the network decides alike for {alike} of {len(split) - would_run} "
            f"samples that run none of them, and differs by {difference:.2g} of the largest output there",
            "This is a bug in adaptify: nothing was written. Please report it with `adaptify env`.",
        )
    return Verified(would_run, difference)
