"""Linear heads on the frozen network: pooled features are cached in one pass, heads trained from them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from adaptify.data import Split
from adaptify.gates.exit_head import ExitHead
from adaptify.methods.base import FitContext
from adaptify.parallel import group
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.training.features import FeatureCache, cache_features
from adaptify.training.linear import train_linear_gates

OUTPUT = "the network's own prediction"
"""What a cache calls the class that the network predicts."""


def linear_layers(model: AdaptiveModel) -> dict[str, nn.Linear]:
    """Name of an exit -> the linear layer of its head, for the exits whose heads are linear."""
    return {item.site.name: item.head.linear for item in model.exits if isinstance(item.head, ExitHead)}


def cache_pooled(
    backbone: AdaptiveModel,
    split: Split,
    context: FitContext,
    name: str,
    *,
    augment: int = 0,
    exact: bool = False,
) -> FeatureCache:
    """Run the frozen backbone over `split`, once plain and `augment` times augmented.

    Args:
        backbone: The network, whose exits are all linear.
        split: The images.
        context: Where to compute, and where to keep the features.
        name: Of the cache.
        augment: Augmented passes, beside the plain one.
        exact: Whether features are kept as they are, and not rounded to half precision.
    """

    def forward(images: Tensor) -> dict[str, Tensor]:
        logits, pooled = backbone.pooled(images)
        return pooled | {OUTPUT: logits.argmax(1, keepdim=True)}

    def batches() -> Iterable[tuple[Tensor, Tensor]]:
        own = partial(split.batches, context.batch_size, device=context.device, take=group.Turns())
        yield from own()
        for extra in range(augment):
            yield from own(augment=True, seed=context.seed + 1 + extra)

    sites = [item.site.name for item in backbone.exits]
    return cache_features(
        forward,
        batches(),
        total=len(split) * (1 + augment),
        folder=context.scratch / name,
        exact=sites if exact else (),
        progress=context.progress,
    )


def fit_linear_heads(
    model: AdaptiveModel,
    cache: FeatureCache,
    context: FitContext,
    *,
    loss: str,
    l2: float = 1e-4,
    epochs: int | None = None,
    lr: float = 5.0,
    batch_size: int = 256,
) -> None:
    """Give every linear head the weights that are best for cached features; see `train_linear_gates`."""
    layers = linear_layers(model)
    solutions = train_linear_gates(
        cache,
        model.num_classes,
        sites=list(layers),
        loss=loss,
        l2=l2,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        seed=context.seed,
        device=context.device,
        progress=context.progress,
    )
    with torch.no_grad():
        for name, linear in layers.items():
            linear.weight.copy_(solutions[name].weight)
            linear.bias.copy_(solutions[name].bias)
