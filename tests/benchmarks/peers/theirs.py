"""Early exits by earlyon 0.3.0, as its documentation says: heads on a frozen backbone, then thresholds.

Its runtime is the eager network with hooks. So that it is not held back by that, it is also given a backbone
with BatchNorm folded and channels_last memory. Its way with batches is that all images leave together, where
the last of them is sure.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adaptify.data import Split
from adaptify.graph.cost import CostModel, count_module
from adaptify.graph.sites import find_exits
from adaptify.graph.trace import Traced, trace
from adaptify.runtime.fast import fold_batchnorm

if importlib.util.find_spec("earlyon") is None:
    sys.exit("earlyon is not installed, which this compares with: pip install earlyon==0.3.0")


class Ready(NamedTuple):
    """Exits of a network as earlyon makes it ready: after which layers, and how wide heads are inside."""

    sites: tuple[str, ...]
    hidden: int


READY: Mapping[str, Ready] = MappingProxyType(
    {
        "adaptify:cifar_resnet20": Ready(("layer1", "layer2", "layer3"), 64),
        "adaptify:cifar_resnet32": Ready(("layer1", "layer2", "layer3"), 64),
        "adaptify:cifar_resnet56": Ready(("layer1", "layer2", "layer3"), 64),
        "torchvision:resnet18": Ready(("layer2", "layer3"), 128),
        "torchvision:resnet50": Ready(("layer1", "layer2", "layer3"), 256),
    }
)

FINE_GRID = tuple(percent / 100 for percent in range(99, 9, -1))
"""Thresholds down to the confidence of knowing nothing of ten classes: its own grid ends at 0.5."""


class Loader:
    """A split as earlyon reads it: anew in every epoch, in another order."""

    def __init__(self, split: Split, batch_size: int, *, shuffle: bool) -> None:
        self._split, self._batch_size, self._shuffle = split, batch_size, shuffle
        self._epoch = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self._epoch += 1
        return self._split.batches(
            self._batch_size, shuffle=self._shuffle, augment=self._shuffle, seed=self._epoch
        )


def wrap(network: nn.Module, sites: Sequence[str], hidden: int, classes: int, shape: tuple[int, ...]) -> Any:
    """The network with untrained exits, for images of `shape` (C, H, W)."""
    from earlyon.models import custom_ee

    torch.manual_seed(0)
    return custom_ee(network, list(sites), classes, input_shape=(1, *shape), hidden_dim=hidden)


def train(model: Any, split: Split, epochs: int) -> None:
    """Train its heads, as `stage2_train_exits` does by default; batches as those of its command line."""
    from earlyon.training import stage2_train_exits

    stage2_train_exits(model, Loader(split, 128, shuffle=True), epochs=epochs, on_epoch_end=lambda log: None)


def calibrate(model: Any, split: Split, budget: float, grid: Sequence[float] | None = None) -> None:
    """Choose thresholds for a part of the MACs, on held-out images, by default from its grid of nine."""
    from earlyon.core.thresholds import calibrate_thresholds_for_budget

    images = Loader(split, 256, shuffle=False)
    calibrate_thresholds_for_budget(model, images, target_computation=budget, grid=grid)


def exit_macs(model: Any, traced: Traced) -> Tensor:
    """Parts of the MACs (exits + 1,): of an image that leaves at each exit, and of one that does not.

    Heads count where they are enabled.
    """
    cost = CostModel(traced)
    sites = {site.name: site for site in find_exits(traced, cost)}
    passed = 0
    macs = []
    for index, point in enumerate(model.config.exit_points):
        site = sites[point.layer_name]
        if model.config.enabled_exits[index]:
            shape = traced.node(site.node).meta["shape"]
            passed += count_module(model.exit_heads[point.name], (1, *shape[1:]))
        macs.append(site.macs_before + passed)
    return torch.tensor([*macs, cost.total + passed]).double() / cost.total


def observe(model: Any, split: Split) -> tuple[Sequence[Tensor], Tensor]:
    """Logits (N, M) of every head, the output last, and labels (N,)."""
    from earlyon.core.thresholds import collect_head_logits

    cache = collect_head_logits(model, Loader(split, 256, shuffle=False), "cpu")
    return cache.logits, cache.targets


def leaves(model: Any, logits: Sequence[Tensor]) -> Tensor:
    """Where each image leaves, alone: (N,)."""
    chosen = torch.full((len(logits[0]),), len(logits) - 1)
    for index in reversed(range(len(logits) - 1)):
        if model.config.enabled_exits[index]:
            sure = logits[index].softmax(1).amax(1) >= model.config.confidence_thresholds[index]
            chosen[sure] = index
    return chosen


def runner(model: Any) -> Callable[[Tensor], int]:
    """Run a batch, and tell where it left: one image by its router, more by its way with batches."""
    model.eval()

    def run(images: Tensor) -> int:
        route = model if len(images) == 1 else model.forward_inference_batched
        return int(route(images).exit_taken)

    return run


def better_form(model: Any, plain: nn.Module, shape: tuple[int, ...]) -> Any:
    """The same exits on the network with BatchNorm folded and channels_last memory.

    Raises:
        AssertionError: It does not compute the same.
    """
    folded = fold_batchnorm(trace(plain.eval(), shape).with_own_tensors())
    network = folded.root.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    sites = [point.layer_name for point in model.config.exit_points]
    hidden = next(iter(model.exit_heads.values())).classifier[0].out_features
    better = wrap(network, sites, hidden, model.config.num_classes, shape).eval()
    better.exit_heads.load_state_dict(model.exit_heads.state_dict())
    better.config = model.config
    model.eval()
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for found, wanted in zip(
            better(images, mode="training"), model(images, mode="training"), strict=True
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    return better
