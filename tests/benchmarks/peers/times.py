"""Milliseconds an image of a network with our exits and with earlyon's, in turns on the same images."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adaptify.graph.trace import trace
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.optimize import optimize
from tests.benchmarks.pruning.markdown import print_head, print_row
from tests.benchmarks.timing import interleaved, median_ratio


def time_both(
    ours: AdaptiveModel, model: Any, plain: nn.Module, images: Tensor, arguments: argparse.Namespace
) -> None:
    """Print a table: milliseconds an image, and times the optimised network without exits.

    Args:
        ours: The network with our exits, under a policy.
        model: The network with earlyon's, under thresholds.
        plain: The network without.
        images: (N, C, H, W).
        arguments: Batch sizes, rounds, and the clock.
    """
    from tests.benchmarks.peers import theirs

    shape = tuple(images.shape[1:])
    traced = trace(plain.eval(), shape)
    fast = optimize(ours)
    better = theirs.better_form(model, plain, shape)
    static = optimize(AdaptiveModel(traced).eval())
    ways: dict[str, Callable[[Tensor], object]] = {
        "static, eager": plain,
        "static, optimised": static,
        "earlyon": theirs.runner(model),
        "earlyon, folded": theirs.runner(better),
        "adaptify": fast,
    }
    spent, total = theirs.exit_macs(model, traced), fast.cost.total
    own = torch.tensor(fast.exit_macs(fast.policy)).double() / total
    print_head(
        "Milliseconds an image, and (in brackets) times the optimised network without exits",
        ["batch", *ways, "MACs, earlyon", "MACs, adaptify"],
    )
    with torch.inference_mode():
        for size in arguments.batch_sizes:
            parts = images.split(size)
            runs = [partial(run_all, way, parts) for way in ways.values()]
            seconds = interleaved(runs, arguments.rounds, 1, clock=arguments.clock)
            cells = [
                f"{1000 * sorted(times)[len(times) // 2] / len(images):.2f} "
                f"({median_ratio(times, seconds[1]):.2f})"
                for times in seconds
            ]
            taken = torch.cat([torch.full((len(part),), theirs.runner(better)(part)) for part in parts])
            left = torch.cat([fast.run(part).exit_index for part in parts])
            print_row([size, *cells, f"{spent[taken].mean():.3f}", f"{own[left].mean():.3f}"])


def run_all(way: Callable[[Tensor], object], parts: Sequence[Tensor]) -> None:
    """Run all batches."""
    for part in parts:
        way(part)
