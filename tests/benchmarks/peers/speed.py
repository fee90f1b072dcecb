"""Time alone: random weights, and exits that are made to let the same part of the images go.

Where a batch is more than one image, earlyon lets it leave as a whole; what that costs is seen here.
"""

from __future__ import annotations

import argparse
import copy

import torch

from adaptify.checkpoint.load import LoadedModel
from adaptify.gates.exit_head import ExitHead
from adaptify.graph.cost import CostModel
from adaptify.graph.sites import find_exits
from adaptify.graph.trace import trace
from adaptify.models.registry import resolve
from adaptify.runtime.adaptive import AdaptiveModel, Exit
from tests.benchmarks.early_exit import force


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--network", default="torchvision:resnet18")
    parser.add_argument(
        "--sites", default="layer2,layer3", help="where earlyon's own ResNet-18 has its exits"
    )
    parser.add_argument("--leave", default="0.3,0.3")
    parser.add_argument("--images", type=int, default=32, help="at least one batch of them")


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    from tests.benchmarks.peers import theirs
    from tests.benchmarks.peers.exits import time_both

    architecture = resolve(arguments.network)
    torch.manual_seed(0)
    module = architecture.build().eval()
    shape = architecture.input.shape
    images = torch.randn(arguments.images, *shape, generator=torch.Generator().manual_seed(1))
    leave = [float(part) for part in arguments.leave.split(",")]
    names = arguments.sites.split(",")
    traced = trace(module, shape)
    sites = {site.name: site for site in find_exits(traced, CostModel(traced))}
    classes = AdaptiveModel(traced).num_classes
    heads = [Exit(sites[name], ExitHead(sites[name].channels, classes)) for name in names]
    ours = AdaptiveModel(traced, heads).eval()
    force(ours, images, leave)
    model = theirs.wrap(copy.deepcopy(module), names, classes, shape, hidden=64).eval()
    _force(model, images, leave)
    loaded = LoadedModel(module, architecture, None, ())  # type: ignore[arg-type]
    time_both(ours, ours.policy, model, loaded, images, arguments)


@torch.inference_mode()
def _force(model: object, images: torch.Tensor, leave: list[float]) -> None:
    """Set earlyon's thresholds so that the parts `leave` of the images go at each exit, one by one."""
    logits = model(images, mode="training")  # type: ignore[operator]
    inside = torch.ones(len(images), dtype=torch.bool)
    for index, part in enumerate(leave):
        sure = logits[index].softmax(1).amax(1)
        ranked = sure[inside].sort(descending=True).values
        count = round(part * len(images))
        limit = float((ranked[count - 1] + ranked[count]) / 2)
        model.config.confidence_thresholds[index] = limit  # type: ignore[attr-defined]
        inside &= sure < limit
