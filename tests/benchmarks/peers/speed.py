"""Time alone: random weights, and exits that are made to let the same part of the images go.

Where a batch is more than one image, earlyon lets it leave as a whole; what that costs is seen here.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from torch import Tensor

from adaptify.gates.exit_head import ExitHead
from adaptify.graph.cost import CostModel
from adaptify.graph.sites import find_exits
from adaptify.graph.trace import trace
from adaptify.models.registry import resolve
from adaptify.runtime.adaptive import AdaptiveModel, Exit
from tests.benchmarks.early_exit import force
from tests.benchmarks.peers.times import time_both

# An exit behind more than this part of the MACs saves nothing.
_MOST = 0.95


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--networks", default="torchvision:resnet18,torchvision:resnet50")
    parser.add_argument("--leave", type=float, default=0.3, help="part of the images at each of two exits")
    parser.add_argument("--images", type=int, default=64, help="at least one batch of them")


def run(arguments: argparse.Namespace) -> None:
    """Print a table for each network, with exits at the last two of earlyon's own places that save work."""
    from tests.benchmarks.peers import theirs

    for name in arguments.networks.split(","):
        architecture = resolve(name)
        torch.manual_seed(0)
        module = architecture.build().eval()
        shape = architecture.input.shape
        images = torch.randn(arguments.images, *shape, generator=torch.Generator().manual_seed(1))
        ready = theirs.READY[name]
        traced = trace(module, shape)
        cost = CostModel(traced)
        sites = {site.name: site for site in find_exits(traced, cost)}
        names = [site for site in ready.sites if sites[site].macs_before < _MOST * cost.total][-2:]
        leave = [arguments.leave] * len(names)
        classes = AdaptiveModel(traced).num_classes
        heads = [Exit(sites[site], ExitHead(sites[site].channels, classes)) for site in names]
        ours = AdaptiveModel(traced, heads).eval()
        force(ours, images, leave)
        model = theirs.wrap(copy.deepcopy(module), names, ready.hidden, classes, shape).eval()
        _force(model, images, leave)
        print(f"\n{name}, exits after {' and '.join(names)}")
        time_both(ours, model, module, images, arguments)


@torch.inference_mode()
def _force(model: Any, images: Tensor, leave: list[float]) -> None:
    """Set earlyon's thresholds so that the parts `leave` of the images go at each exit, one by one."""
    logits = model(images, mode="training")
    inside = torch.ones(len(images), dtype=torch.bool)
    for index, part in enumerate(leave):
        # Logits of random weights can be so large that softmax makes all of them equally sure.
        temperature = max(1.0, float(logits[index].std()))
        model.config.temperatures[model.config.exit_points[index].name] = temperature
        sure = (logits[index] / temperature).softmax(1).amax(1)
        ranked = sure[inside].sort(descending=True).values
        count = round(part * len(images))
        limit = float((ranked[count - 1] + ranked[count]) / 2)
        model.config.confidence_thresholds[index] = limit
        inside &= sure < limit
