"""Seconds to prune to half the MACs, beside Torch-Pruning, in one process and in turns; medians.

Ours: everything from the module to the smaller one: tracing, scores, the choice that meets the MACs, removal.
Theirs, search: bisection over the pruning ratio until the MACs are met within 1%, as ours are; each try
builds the dependency graph, removes, and counts MACs by running the network. Theirs, one step: the first of
these two, for the ratio that the search found, as if it had been known. Both copy the module.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from adaptify.graph.cost import CostModel
from adaptify.graph.trace import trace
from adaptify.models.registry import resolve
from tests.benchmarks.pruning import ours
from tests.benchmarks.pruning.markdown import print_head, print_row
from tests.benchmarks.timing import interleaved, median_ratio

NETWORKS = "torchvision:resnet50,torchvision:densenet121,torchvision:mobilenet_v2,torchvision:vit_b_16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--networks", default=NETWORKS, help="names with commas between")
    parser.add_argument("--target", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=5)


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    columns = ["network", "ours, s", "theirs, search, s", "tries", "theirs, one step, s"]
    columns += ["ours : search", "ours : one step", "kept, ours", "kept, theirs"]
    print_head(f"Seconds to prune to {arguments.target} of the MACs", columns)
    for name in arguments.networks.split(","):
        print_row([name, *measure(name, arguments.target, arguments.rounds)])


def measure(name: str, target: float, rounds: int) -> list[object]:
    """The row of one network."""
    from tests.benchmarks.pruning import theirs

    architecture = resolve(name)
    torch.manual_seed(0)
    model, shape = architecture.build().eval(), architecture.input.shape
    pruned, ratio, tries = theirs.search(model, shape, target)
    own, searched, stepped = interleaved(
        [
            lambda: ours.prune(model, shape, target),
            lambda: theirs.search(model, shape, target),
            lambda: theirs.prune_once(model, shape, ratio),
        ],
        rounds,
        warmup=1,
    )
    before = CostModel(trace(model, shape)).total
    return [
        f"{statistics.median(own):.2f}",
        f"{statistics.median(searched):.2f}",
        tries,
        f"{statistics.median(stepped):.2f}",
        f"{median_ratio(own, searched):.3f}",
        f"{median_ratio(own, stepped):.2f}",
        f"{ours.prune(model, shape, target).selection.fraction:.3f}",
        f"{CostModel(trace(pruned, shape)).total / before:.3f}",
    ]
