"""Networks of every method on the size of digits, with decisions that differ from image to image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from families import scramble
from gated_nets import gated_digits, shake
from torch import Tensor, nn

from adaptify.assembly import Adapted, assemble
from adaptify.graph.cost import CostModel
from adaptify.graph.trace import Traced, trace
from adaptify.methods import find_method
from adaptify.models.cifar_resnet import digits_resnet
from adaptify.models.msdnet import digits_msdnet
from adaptify.plan import BoostExits, PlaceExit, Step
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.policy import ThresholdPolicy

SHAPE = (1, 8, 8)
CHANNELS = {"layer1": 16, "layer2": 32}


def images(count: int = 24, shape: tuple[int, int, int] = SHAPE, seed: int = 1) -> Tensor:
    """Seeded random images."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def network() -> Traced:
    """The network of the digits, with weights under which everything matters."""
    torch.manual_seed(0)
    return trace(scramble(digits_resnet()), SHAPE)


def leave_by_half(model: AdaptiveModel, score: str, temperatures: tuple[float, ...] | None = None) -> None:
    """Set thresholds between scores, so that half of the images that come to an exit leave there."""
    with torch.no_grad():
        found = model.everything(images(24, model.traced.input_shape))
    inside = torch.ones(24, dtype=torch.bool)
    policy = ThresholdPolicy((math.inf,) * len(model.exits), score, temperatures)
    thresholds: list[float] = []
    for index, (name, logits) in enumerate(found.exits.items()):
        scores = found.gates[name] if score == "gate" else policy.rate(index, logits)
        ranked = scores[inside].sort().values
        middle = len(ranked) // 2
        thresholds.append(float((ranked[middle - 1] + ranked[middle]) / 2))
        inside &= scores < thresholds[-1]
    model.policy = ThresholdPolicy(tuple(thresholds), score, temperatures)


def with_exits(score: str, head: str = "linear", *, gate: bool = False, boost: bool = False) -> AdaptiveModel:
    """Two exits with fresh heads."""
    steps: list[Step] = [
        PlaceExit(site=site, channels=width, classes=10, head=head, width=8, gate=gate)  # type: ignore[arg-type]
        for site, width in CHANNELS.items()
    ]
    if boost:
        steps.append(BoostExits(temperatures=(0.75, 1.5)))
    torch.manual_seed(0)
    model = assemble(network(), steps)
    assert isinstance(model, AdaptiveModel)
    for name, parameter in model.named_parameters():
        if name.startswith("gates") and parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    model.eval()
    leave_by_half(model, score, (2.0, 0.5) if score == "entropy" else None)
    return model


def with_own_exits() -> AdaptiveModel:
    """A network that is made with exits."""
    torch.manual_seed(0)
    model = AdaptiveModel(trace(digits_msdnet(blocks=3).eval(), SHAPE)).eval()
    leave_by_half(model, "confidence")
    return model


def with_gates(method: str, **options: object) -> GatedModel:
    """Gates that look at images, each open for some of them, in the network of the digits."""
    return placed(network(), method, **options)


def placed(traced: Traced, method: str, **options: object) -> GatedModel:
    """The same in any network."""
    kind = find_method(method)
    own = kind(kind.Gates.model_validate(options), kind.Train())
    torch.manual_seed(0)
    model = assemble(traced, own.place(traced, CostModel(traced), 10))  # type: ignore[attr-defined]
    assert isinstance(model, GatedModel)
    _vary(model.eval())
    return model


def _vary(model: GatedModel) -> None:
    """Let what decides say yes to half of the images, as far as one gate leaves the next its say."""
    generator = torch.Generator().manual_seed(3)
    for decider in model.deciders:
        with torch.no_grad():
            for parameter in decider.module.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.5, generator=generator)
    place = 0
    for decider in model.deciders:
        with torch.no_grad():
            odds = model.run(images(24, model.traced.input_shape)).odds[:, place : place + decider.gates]
            # Saliences are 0 for a third, and anything for the others.
            middle = odds.quantile(0.5 if model.policy.variants() else 0.33, 0)
            module = decider.module
            last = getattr(module, "linear", None)
            if last is not None:
                last.bias -= middle
            else:
                module.bias[:, 0, 1] -= middle
        place += decider.gates


def frozen_channels() -> GatedModel:
    """Gates that are the same for all images and close channels, next to adapters too."""
    return shake(gated_digits())


def frozen_blocks() -> GatedModel:
    """Gates that are the same for all images and close a block."""
    return shake(gated_digits(granularity="layer"), seed=2, shift=0.0)


def plain() -> AdaptiveModel:
    """The network as it is."""
    return AdaptiveModel(network()).eval()


DECIDING: Mapping[str, Callable[[], Adapted]] = {
    "dgate": lambda: with_exits("distance"),
    "margin of convolutional heads": lambda: with_exits("margin", "convolutional"),
    "entropy with temperatures": lambda: with_exits("entropy"),
    "boostnet": lambda: with_exits("confidence", boost=True),
    "gumbel exits": lambda: with_exits("gate", gate=True),
    "own exits": with_own_exits,
    "sgad": lambda: with_gates("sgad"),
    "gumbel layers": lambda: with_gates("gumbel", kind="dependent", granularity="layer"),
    "gumbel channels": lambda: with_gates("gumbel", kind="dependent"),
    "lcnet": lambda: with_gates("lcnet"),
    "parallel lcnet": lambda: with_gates("lcnet", execution="parallel"),
}
"""Networks that decide for each image, by what made them."""

STATIC: Mapping[str, Callable[[], Adapted]] = {
    "plain": plain,
    "frozen channels": frozen_channels,
    "frozen blocks": frozen_blocks,
}
"""Networks that do the same for every image, or come to that by freezing."""
