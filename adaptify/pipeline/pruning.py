"""Choosing channels and removing them: what `prune` would do to a network, checked against masking."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from adaptify.assembly import remove
from adaptify.errors import TargetError, UsageError, did_you_mean
from adaptify.graph.channel_cost import ChannelCost
from adaptify.graph.channels import Channels, find_channels
from adaptify.graph.cost import CostModel
from adaptify.graph.importance import CRITERIA, score_channels
from adaptify.graph.masking import mask_channels
from adaptify.graph.program import compile_graph
from adaptify.graph.removal_plan import keep_to_json
from adaptify.graph.selection import Selection, select_channels
from adaptify.graph.trace import Traced
from adaptify.pipeline.prepare import Network
from adaptify.plan import RemoveChannels
from adaptify.report.schema import PrunedLayer
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.training.taylor import taylor_scores

TOLERANCE = 1e-5
"""How far the outputs of the pruned network may be from those of the masked one, relative to the largest."""

FROM_IMAGES = MappingProxyType({"taylor": taylor_scores})
"""Importance criteria that look at labelled images; those of `graph.importance.CRITERIA` look at weights."""

IMPORTANCES = (*CRITERIA, *FROM_IMAGES)
"""All importance criteria."""

_ROUNDS, _WARM_UP, _SECONDS = 50, 3, 4.0


@dataclass(frozen=True)
class Pruned:
    """A network without some of its channels.

    Attributes:
        channels: The channels of the network before.
        selection: Which of them stay.
        step: The same, as a step of a plan.
        traced: The network after.
        cost: Its MACs.
    """

    channels: Channels
    selection: Selection
    step: RemoveChannels
    traced: Traced
    cost: CostModel


def check_importance(importance: str) -> None:
    """Check that there is such a criterion.

    Raises:
        UsageError: There is none.
    """
    if importance not in IMPORTANCES:
        raise UsageError(
            f"unknown importance criterion '{importance}'{did_you_mean(importance, IMPORTANCES)}",
            f"Use one of: {', '.join(IMPORTANCES)}.",
        )


def judge(
    channels: Channels,
    importance: str,
    batches: Iterable[tuple[Tensor, Tensor]] = (),
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Return the scores (size,) of every removable group, by name; higher is more important.

    Args:
        channels: The channels of the network.
        importance: One of `IMPORTANCES`.
        batches: Images and labels on `device`, for a criterion of `FROM_IMAGES`.
        device: Where to compute with them.

    Raises:
        UsageError: There is no such criterion.
    """
    check_importance(importance)
    if importance in FROM_IMAGES:
        return FROM_IMAGES[importance](channels, batches, device)
    return score_channels(channels, importance)


def remove_least(
    network: Network,
    target: float,
    importance: str,
    round_to: int,
    batches: Iterable[tuple[Tensor, Tensor]] = (),
    device: torch.device | str = "cpu",
) -> Pruned:
    """Remove the least important channels until `target` of the MACs are left.

    Args:
        network: The network.
        target: Fraction of the MACs to keep.
        importance: One of `IMPORTANCES`.
        round_to: Multiple of channels to keep.
        batches: As for `judge`.
        device: Likewise.

    Raises:
        UsageError: One of the values makes no sense.
        TargetError: No choice of channels is within 1% of the target.
    """
    channels = find_channels(network.traced)
    cost = ChannelCost(channels, network.cost)
    scores = judge(channels, importance, batches, device)
    selection = select_channels(cost, scores, target, round_to=round_to)
    step = RemoveChannels.model_validate({"keep": keep_to_json(channels, selection.keep)})
    traced = remove(network.traced, step)
    return Pruned(channels, selection, step, traced, CostModel(traced))


def verify(pruned: Pruned, written: AdaptiveModel) -> float:
    """Hold the network that was `written` against the masked one, and its MACs against the prediction.

    Returns:
        The largest difference of their outputs for random images, relative to the largest output.

    Raises:
        TargetError: They differ.
    """
    images = torch.randn(2, *pruned.traced.input_shape, generator=torch.Generator().manual_seed(0))
    masked = _outputs(mask_channels(pruned.channels, pruned.selection.keep), images)
    scale = masked.abs().max().clamp_min(torch.finfo(masked.dtype).tiny)
    difference = float((_outputs(written.backbone(), images) - masked).abs().max() / scale)
    if not difference <= TOLERANCE:
        raise TargetError(
            f"the pruned network differs from the masked one by {difference:.2g} of the largest output",
            "This is a bug in adaptify: nothing was written. Please report it with `adaptify env`.",
        )
    if written.cost.total != pruned.selection.macs:
        raise TargetError(
            f"the pruned network costs {written.cost.total:,} MACs instead of {pruned.selection.macs:,}",
            "This is a bug in adaptify: nothing was written. Please report it with `adaptify env`.",
        )
    return difference


def _outputs(traced: Traced, images: Tensor) -> Tensor:
    with torch.inference_mode():
        result: Tensor = compile_graph(traced.graph)(traced.root.eval(), images)
    return result


def pruned_layers(network: Network, pruned: Pruned) -> list[PrunedLayer]:
    """Channels and MACs of every layer with channels, before and after."""
    after = {node.name: node for node in pruned.traced.graph.nodes}
    rows = []
    for node in network.traced.graph.nodes:
        if node.op != "call_module":
            continue
        before = _channels(network.traced.root.get_submodule(str(node.target)))
        if before is None:
            continue
        left = after.get(node.name)
        rows.append(
            PrunedLayer(
                name=node.meta["name"],
                channels_before=before,
                channels_after=_channels(pruned.traced.root.get_submodule(str(left.target))) or 0
                if left is not None
                else 0,
                macs_before=network.cost.macs[node.name],
                macs_after=pruned.cost.macs[left.name] if left is not None else 0,
            )
        )
    return rows


def _channels(module: nn.Module) -> int | None:
    for name in ("out_channels", "out_features"):
        if isinstance(count := getattr(module, name, None), int):
            return count
    return None


def size_of(traced: Traced) -> dict[str, int]:
    """Number of parameters, and bytes of all tensors of the state dict."""
    tensors: Mapping[str, Tensor] = traced.root.state_dict()
    return {
        "parameters": sum(parameter.numel() for parameter in traced.root.parameters()),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
    }


def take_turns(models: list[AdaptiveModel], device: torch.device, batch_size: int = 1) -> list[float]:
    """Median milliseconds of one batch for each network; they take turns, so that all meet the same load."""
    images = torch.randn(batch_size, *models[0].traced.input_shape, device=device)
    times: list[list[float]] = [[] for _ in models]
    end = time.perf_counter() + _SECONDS
    with torch.inference_mode():
        for turn in range(_WARM_UP + _ROUNDS):
            for model, own in zip(models, times, strict=True):
                started = time.perf_counter()
                output: Any = model.run(images).logits
                output.flatten()[0].item()  # an accelerator has finished when its result is here
                if turn >= _WARM_UP:
                    own.append(1000 * (time.perf_counter() - started))
            if turn > _WARM_UP and time.perf_counter() > end:
                break
    return [statistics.median(own) for own in times]
