"""Networks that decide by sample, with what other thresholds give, for the tests of the knob."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from gated_nets import DIGITS, gated_digits, shake
from skipping_nets import place
from torch import Tensor

from adaptify.assembly import assemble
from adaptify.data import open_data
from adaptify.graph.cost import CostModel
from adaptify.graph.sites import find_exits
from adaptify.graph.trace import trace
from adaptify.plan import PlaceExit, Plan
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.optimize import optimize
from adaptify.runtime.policy import ThresholdPolicy
from adaptify.training.calibrate import search_thresholds
from adaptify.training.gate_frontier import sweep_gates
from adaptify.training.records import ExitRecords


def digits() -> Tensor:
    """A batch of the embedded digits."""
    images, _ = next(iter(open_data("digits", input=DIGITS.input).test.batches(64)))
    return images


def with_exits() -> AdaptiveModel:
    """The small network of the digits with two untrained exits and the frontier of these."""
    torch.manual_seed(0)
    traced = trace(DIGITS.build().eval(), DIGITS.input.shape)
    sites = {site.name: site for site in find_exits(traced, CostModel(traced))}
    steps = tuple(
        PlaceExit(site=name, channels=sites[name].channels, classes=10) for name in ("layer1", "layer2")
    )
    model = assemble(traced, steps).eval()
    assert isinstance(model, AdaptiveModel)
    split = open_data("digits", input=DIGITS.input).test
    images, labels = next(iter(split.batches(len(split))))
    with torch.no_grad():
        logits, exits = model.dense(images)
    records = ExitRecords.of(list(exits.values()), logits, labels, "margin")
    frontier = search_thresholds(
        records.scores.numpy(), records.correct.numpy(), model.exit_macs(), model.cost.total
    )
    model.policy = ThresholdPolicy((math.inf, math.inf), "margin")
    model.plan = Plan(
        architecture=DIGITS.to_json(),
        steps=steps,
        policy=model.policy.to_json(),
        frontier={**frontier.to_json(), "policy": model.policy.to_json()},
    )
    return model


def swept(model: GatedModel) -> GatedModel:
    """`model` with a plan that holds what other thresholds give on digits."""
    split = open_data("digits", input=DIGITS.input).test
    whole = AdaptiveModel(model.backbone()).eval()
    frontier = sweep_gates(model, lambda images: whole.run(images).logits, split)
    plan = model.plan or Plan(architecture=DIGITS.to_json())
    model.plan = plan.model_copy(update={"frontier": frontier.to_json(), "policy": model.policy_json()})
    return model


def with_gates() -> GatedModel:
    """The small network of the digits with gates for channels."""
    return swept(shake(gated_digits(kind="dependent")))


def with_masks() -> GatedModel:
    """The same with a mask net."""
    torch.manual_seed(0)
    model = place(trace(DIGITS.build().eval(), DIGITS.input.shape), "masks")
    with torch.no_grad():
        for name, parameter in model.deciders[0].module.named_parameters():
            if name.startswith("linear"):
                parameter.normal_(generator=torch.Generator().manual_seed(3))
    return swept(model)


def with_saliences() -> GatedModel:
    """The same with saliences of all sizes."""
    torch.manual_seed(0)
    model = place(trace(DIGITS.build().eval(), DIGITS.input.shape), "saliences")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for decider in model.deciders:
            for name, parameter in decider.module.named_parameters():
                if name.startswith("linear"):
                    parameter.normal_(0.4 * name.endswith("bias"), 0.4, generator=generator)
    return swept(model)


KINDS: Mapping[str, Callable[[], Any]] = {
    "exits": with_exits,
    "gates": with_gates,
    "masks": with_masks,
    "saliences": with_saliences,
}
FORMS: Mapping[str, Callable[[Any], Any]] = {"trained": lambda model: model, "fast": optimize}
