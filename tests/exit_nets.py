"""Networks with exits of every kind, for the tests of every room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptify.assembly import assemble
from adaptify.graph.cost import CostModel
from adaptify.graph.trace import Traced, trace
from adaptify.methods import find_method
from adaptify.methods.base import GatingMethod
from adaptify.models.registry import Architecture, resolve
from adaptify.plan import Plan, Step
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.policy import GATE, ThresholdPolicy

PLAIN = resolve("adaptify:digits_resnet")
OWN = resolve("adaptify:digits_msdnet")


def exit_steps(
    method: str, traced: Traced, cost: CostModel | None = None, **options: Any
) -> tuple[Step, ...]:
    """The steps with which `method`, with these options of `gates`, gives `traced` exits."""
    found = find_method(method)
    made = found(found.Gates.model_validate(options), found.Train())
    assert isinstance(made, GatingMethod)
    cost = cost or CostModel(traced)
    return tuple(made.place(traced, cost, AdaptiveModel(traced, cost=cost).num_classes))


def with_exits(method: str, traced: Traced, cost: CostModel | None = None, **options: Any) -> AdaptiveModel:
    """`traced` with fresh exits, in evaluation mode; it shares the tensors of `traced`."""
    torch.manual_seed(0)
    model = assemble(traced, exit_steps(method, traced, cost, **options))
    assert isinstance(model, AdaptiveModel)
    return model.eval()


@dataclass(frozen=True)
class Kind:
    """A kind of exits: a network, and how it gets them."""

    architecture: Architecture
    method: str
    gates: Mapping[str, Any]
    score: str = "confidence"
    temperatures: tuple[float, ...] | None = None


KINDS = {
    "boosted": Kind(PLAIN, "boostnet", {}),
    "boosted, each with a temperature": Kind(PLAIN, "boostnet", {"temperature": (0.3, 0.8)}, "margin"),
    "boosted, convolutional": Kind(PLAIN, "boostnet", {"head": "convolutional", "width": 8}),
    "each for itself, scaled": Kind(PLAIN, "boostnet", {"ensemble": "none"}, "confidence", (0.5, 2.0)),
    "learned": Kind(PLAIN, "gumbel_exits", {"width": 4}, GATE),
    "learned, linear": Kind(PLAIN, "gumbel_exits", {"width": 4, "head": "linear"}, GATE),
    "own": Kind(OWN, "boostnet", {"ensemble": "none"}, "entropy"),
    "own, boosted and scaled": Kind(OWN, "boostnet", {}, "confidence", (0.5, 1.0, 2.0)),
}


def digits_with(kind: Kind) -> AdaptiveModel:
    """A small network with exits of a kind, a plan, and thresholds between scores; all its weights matter."""
    torch.manual_seed(0)
    traced = trace(kind.architecture.build().eval(), kind.architecture.input.shape)
    model = with_exits(kind.method, traced, **kind.gates)
    shake(model)
    model.plan = Plan(
        architecture=kind.architecture.to_json(), steps=exit_steps(kind.method, traced, **kind.gates)
    )
    split_evenly(model, digits(64), kind.score, kind.temperatures)
    return model


def digits(count: int) -> Tensor:
    """Images (N, 1, 8, 8) of noise."""
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def shake(model: nn.Module) -> None:
    """Give fresh heads something to say, and BatchNorm statistics that are not those of a fresh one."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
        if isinstance(module, nn.Linear):
            with torch.no_grad():
                module.weight.normal_(0, 0.5, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)


def split_evenly(
    model: AdaptiveModel,
    images: Tensor,
    score: str = "confidence",
    temperatures: tuple[float, ...] | None = None,
) -> None:
    """Let about a third of `images` leave at each exit: thresholds lie in the widest gap around that."""
    model.policy = ThresholdPolicy((0.0,) * len(model.exits), score, temperatures)
    limits: list[float] = []
    rest = torch.ones(len(images), dtype=torch.bool)
    for scores in scores_of(model, images):
        ranked = scores[rest].sort(descending=True).values
        around = len(ranked) // 3
        middle = slice(max(1, around - 3), min(around + 4, len(ranked)))
        gaps = ranked[middle.start - 1 : middle.stop - 1] - ranked[middle]
        place = middle.start + int(gaps.argmax())
        limits.append(float((ranked[place - 1] + ranked[place]) / 2))
        rest &= scores < limits[-1]
    model.policy = ThresholdPolicy(tuple(limits), score, temperatures)


def scores_of(model: AdaptiveModel, images: Tensor) -> list[Tensor]:
    """What decides at each exit, (N,), computed for all of `images`."""
    with torch.no_grad():
        found = model.everything(images)
    if model.policy.score == GATE:
        return list(found.gates.values())
    return [model.policy.rate(index, logits) for index, logits in enumerate(found.exits.values())]


def densely(model: AdaptiveModel, images: Tensor) -> tuple[Tensor, Tensor]:
    """What a run under the policy should give, from everything: logits (N, M) and exits (N,)."""
    with torch.no_grad():
        found = model.everything(images)
    leaves = [
        scores >= limit
        for scores, limit in zip(scores_of(model, images), model.policy.thresholds, strict=True)
    ]
    leaves.append(torch.ones(len(images), dtype=torch.bool))
    index = torch.stack(leaves).int().argmax(0)
    logits = torch.stack([*found.exits.values(), found.logits])
    return logits[index, torch.arange(len(images))], index


def rows_seen(module: nn.Module, seen: list[int]) -> Callable[[], None]:
    """Note in `seen` how many rows each call of `module` gets; returns what ends that."""
    hook = module.register_forward_hook(lambda _module, args, _output: seen.append(len(args[0])))
    return hook.remove
