"""Pruning to half of the MACs: accuracy after the same training, seconds to prune, and time.

Torch-Pruning has no runtime of its own: what both make is run in the same way, `adaptify.optimize`.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from functools import partial

import torch

from adaptify.checkpoint.load import load_model
from adaptify.data import open_data
from adaptify.graph.cost import CostModel
from adaptify.graph.trace import trace
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.optimize import optimize
from adaptify.training.options import LoopOptions
from tests.benchmarks.peers.times import run_all
from tests.benchmarks.pruning.accuracy import pruners, tuned
from tests.benchmarks.pruning.markdown import print_head, print_row
from tests.benchmarks.timing import interleaved, median_ratio


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True, help="as `adaptify retrofit --data` takes it")
    parser.add_argument("--epochs", type=int, default=1, help="0: time alone")
    parser.add_argument("--seeds", default="0", help="numbers with commas between; the accuracy is the mean")
    parser.add_argument("--target", type=float, default=0.5)
    parser.add_argument("--round-to", default="1,16", help="multiples of channels that ours keeps")
    parser.add_argument("--ours", default="ours: l2, multiples", help="part of the names of our ways")
    parser.add_argument("--theirs", default="magnitude", help="part of the names of Torch-Pruning's ways")
    parser.add_argument("--images", type=int, default=64, help="random images that are timed")


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    loaded = load_model(arguments.checkpoint)
    shape = loaded.architecture.input.shape
    data = open_data(arguments.data, input=loaded.architecture.input)
    whole = trace(loaded.module.eval(), shape)
    options = LoopOptions(epochs=arguments.epochs, lr=0.01, batch_size=128)
    sizes = [f"time, batch {size}" for size in arguments.batch_sizes]
    title = f"{loaded.architecture.name}, {len(data.train)} images, {arguments.epochs} epochs"
    print_head(title, ["pruned by", "MACs kept", "seconds", "accuracy", *sizes])
    images = torch.randn(arguments.images, *shape, generator=torch.Generator().manual_seed(0))
    static = optimize(AdaptiveModel(whole).eval())
    for name, prune in pruners(arguments, data):
        if arguments.ours not in name and not (name.startswith("Torch") and arguments.theirs in name):
            continue
        started = time.perf_counter()
        network = prune(loaded.module.cpu().eval(), shape).eval()
        pruning = time.perf_counter() - started
        traced = trace(network, shape)
        kept = CostModel(traced).total / CostModel(whole).total
        fast = optimize(AdaptiveModel(traced).eval())
        cells = []
        with torch.inference_mode():
            for size in arguments.batch_sizes:
                ways = [partial(run_all, way, images.split(size)) for way in (fast, static)]
                seconds = interleaved(ways, arguments.rounds, 1, clock=arguments.clock)
                cells.append(f"{median_ratio(*seconds):.3f}")
        told = "-"
        if arguments.epochs:
            accuracies = [
                tuned(copy.deepcopy(network), data, options, torch.device("cpu"), int(seed))
                for seed in arguments.seeds.split(",")
            ]
            told = f"{statistics.mean(accuracies):.2%} ({' '.join(f'{100 * one:.2f}' for one in accuracies)})"
        print_row([name, f"{kept:.3f}", f"{pruning:.2f}", told, *cells])
