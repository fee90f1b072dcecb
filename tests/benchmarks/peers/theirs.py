"""Early exits by earlyon 0.3.0, as its documentation says: heads on a frozen backbone, then thresholds.

Its runtime is the eager network with hooks. So that it is not held back by that, it is also given a backbone
with BatchNorm folded and channels_last memory. Its way with batches is that all images leave together, where
the last of them is sure.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptify.data import Split
from adaptify.graph.cost import CostModel, count_module
from adaptify.graph.sites import find_exits
from adaptify.graph.trace import Traced, trace
from adaptify.runtime.fast import fold_batchnorm

if importlib.util.find_spec("earlyon") is None:
    sys.exit("earlyon is not installed, which this compares with: pip install earlyon==0.3.0")


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


def wrap(network: nn.Module, sites: Sequence[str], classes: int, shape: tuple[int, ...], hidden: int) -> Any:
    """The network with untrained exits."""
    from earlyon.models import custom_ee

    return custom_ee(network, list(sites), classes, input_shape=(1, *shape), hidden_dim=hidden)


def train(model: Any, split: Split, epochs: int) -> None:
    """Train its heads, as `stage2_train_exits` does by default."""
    from earlyon.training import stage2_train_exits

    stage2_train_exits(model, Loader(split, 128, shuffle=True), epochs=epochs, on_epoch_end=lambda log: None)


def calibrate(model: Any, split: Split, budget: float) -> None:
    """Choose thresholds for a part of the MACs, on held-out images."""
    from earlyon.core.thresholds import calibrate_thresholds_for_budget

    calibrate_thresholds_for_budget(model, Loader(split, 256, shuffle=False), target_computation=budget)


def exit_macs(model: Any, traced: Traced) -> list[int]:
    """MACs of an image that leaves at each exit, and of one that does not; heads count where enabled."""
    sites = {site.name: site for site in find_exits(traced, CostModel(traced))}
    passed = 0
    macs = []
    for index, point in enumerate(model.config.exit_points):
        site = sites[point.layer_name]
        if model.config.enabled_exits[index]:
            shape = traced.node(site.node).meta["shape"]
            passed += count_module(model.exit_heads[point.name], (1, *shape[1:]))
        macs.append(site.macs_before + passed)
    return [*macs, CostModel(traced).total + passed]


def observe(model: Any, split: Split) -> tuple[list[Tensor], Tensor]:
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


def runner(model: Any) -> Any:
    """Run a batch: a single image by its router, more by its way with batches."""
    model.eval()

    def run(images: Tensor) -> int:
        if len(images) == 1:
            return int(model(images, mode="inference").exit_taken)
        return int(model.forward_inference_batched(images).exit_taken)

    return run


def better_form(network: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """The network with BatchNorm folded and channels_last memory; its modules keep their names."""
    folded = fold_batchnorm(trace(network.eval(), shape).with_own_tensors())
    return folded.root.eval().requires_grad_(False).to(memory_format=torch.channels_last)
