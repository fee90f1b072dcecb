"""Fixtures: the networks that contracts are held over."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torchvision
from gated_nets import gated
from torch import Tensor, nn

from adaptify.graph.copying import share_copy
from adaptify.graph.cost import CostModel
from adaptify.graph.program import compile_graph
from adaptify.graph.sites import find_blocks
from adaptify.graph.trace import Traced, trace
from adaptify.runtime.gated import GatedModel


@dataclass(frozen=True)
class Builder:
    """How a family is built for a test: at the smallest size it takes, since graphs do not depend on it."""

    size: int
    kwargs: Mapping[str, Any] = field(default_factory=dict)


# Initialising GoogLeNet and Inception as published takes many seconds and is not what is tested.
FAMILIES: dict[str, Builder] = {
    "alexnet": Builder(63),
    "vgg16_bn": Builder(32),
    "resnet18": Builder(32),
    "resnet50": Builder(32),
    "resnext50_32x4d": Builder(32),
    "wide_resnet50_2": Builder(32),
    "densenet121": Builder(32),
    "googlenet": Builder(32, {"init_weights": False}),
    "inception_v3": Builder(75, {"init_weights": False}),
    "mobilenet_v2": Builder(32),
    "mobilenet_v3_small": Builder(32),
    "mnasnet1_0": Builder(32),
    "shufflenet_v2_x1_0": Builder(32),
    "squeezenet1_0": Builder(32),
    "efficientnet_b0": Builder(32),
    "efficientnet_v2_s": Builder(32),
    "regnet_y_400mf": Builder(32),
    "regnet_x_400mf": Builder(32),
    "convnext_tiny": Builder(32),
    "swin_t": Builder(64),
    "vit_b_16": Builder(64, {"image_size": 64}),
    "maxvit_t": Builder(224),
}


# Twins of others in what their graphs are made of, and the dearest one: they take their turn in slow runs.
SLOW = ("vgg16_bn", "wide_resnet50_2", "resnext50_32x4d", "regnet_x_400mf", "efficientnet_v2_s", "maxvit_t")


class Family:
    """A network of a family with random weights, traced and counted once."""

    def __init__(self, name: str, model: nn.Module, size: int) -> None:
        self.name = name
        self.input_shape = (3, size, size)
        self.model = model.eval()
        self.images = torch.randn(2, *self.input_shape, generator=torch.Generator().manual_seed(1))

    @functools.cached_property
    def traced(self) -> Traced:
        return trace(self.model, self.input_shape)

    @functools.cached_property
    def cost(self) -> CostModel:
        return CostModel(self.traced)

    @functools.cached_property
    def logits(self) -> Tensor:
        with torch.no_grad():
            return self.model(self.images)


def build(name: str, **kwargs: Any) -> Family:
    """Build a family with seeded random weights."""
    builder = FAMILIES[name]
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(**{**builder.kwargs, **kwargs})
    return Family(name, model, builder.size)


# One family is alive at a time: pytest runs the tests of all files that want it before it goes to the next.
@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in FAMILIES],
)
def family(request: pytest.FixtureRequest) -> Family:
    """Each of the torchvision families in turn."""
    return build(request.param)


@pytest.fixture(scope="session")
def build_family() -> Callable[..., Family]:
    """The function that builds a family by name."""
    return build


def own_state(model: nn.Module) -> nn.Module:
    """A copy of `model` that shares its parameters and has buffers of its own."""
    return share_copy(model, lambda tensor: tensor if isinstance(tensor, nn.Parameter) else tensor.clone())


@pytest.fixture(scope="session")
def with_own_state() -> Callable[[nn.Module], nn.Module]:
    """The function that copies a network's buffers but not its parameters."""
    return own_state


def scramble(model: nn.Module) -> nn.Module:
    """Give `model` weights under which no channel is like another, and no branch next to nothing."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.2, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() <= 1 or float(parameter.std()) < 1e-3:
                parameter.uniform_(0.2, 1.0, generator=generator)
    return model.eval()


def evaluate(traced: Traced, images: Tensor, *, training: bool = False, seed: int = 0) -> Tensor:
    """Run the whole graph of `traced` on `images`."""
    torch.manual_seed(seed)
    with torch.no_grad():
        return compile_graph(traced.graph)(traced.root.train(training), images)


@pytest.fixture(scope="session")
def run_graph() -> Callable[..., Tensor]:
    """The function that runs a traced network."""
    return evaluate


class GatedFamily:
    """A family with weights under which all channels matter, and with gates."""

    def __init__(self, family: Family) -> None:
        self.name = family.name
        self.images = family.images
        self.cost = family.cost
        self.traced = trace(scramble(copy.deepcopy(family.model)), family.input_shape)
        self.blocks = find_blocks(self.traced, self.cost)

    @functools.cached_property
    def channels(self) -> GatedModel:
        """With channel gates that look at nothing."""
        return gated(self.traced, self.cost)

    def layers(self) -> GatedModel:
        """With layer gates that look at nothing; skips the test where there are no blocks."""
        if not self.blocks:
            pytest.skip("no residual blocks")
        return gated(self.traced, self.cost, granularity="layer")


@pytest.fixture(scope="session")
def gated_family(family: Family) -> GatedFamily:
    """Each of the families with gates; not to be trained."""
    return GatedFamily(family)
