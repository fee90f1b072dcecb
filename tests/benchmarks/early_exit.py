"""Does time fall as MACs fall? A network with exits against the same network without, equally optimised.

    python -m tests.benchmarks.early_exit [--rounds 15] [--threads 2]

Weights are random, and thresholds are set so that a wanted part of the images leaves at each exit
(`--leave 0.3,0.3`). Both networks have BatchNorm folded and channels_last memory. The gap is the ratio of
times minus the ratio of MACs: what is lost to gates, gathering rows, and smaller batches.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import Tensor

from adaptify.gates.exit_head import ExitHead
from adaptify.graph.cost import CostModel
from adaptify.graph.placement import default_exits
from adaptify.graph.sites import find_exits
from adaptify.graph.trace import trace
from adaptify.models.registry import resolve
from adaptify.runtime.adaptive import AdaptiveModel, Exit
from adaptify.runtime.allocator import keep_freed_memory
from adaptify.runtime.optimize import optimize
from adaptify.runtime.policy import SCORES, ThresholdPolicy
from tests.benchmarks.timing import interleaved, median_ratio


def exiting_network(name: str, exits: int) -> AdaptiveModel:
    """The architecture `name` with random weights and `exits` untrained gates at its first stage ends."""
    architecture = resolve(name)
    torch.manual_seed(0)
    traced = trace(architecture.build().eval(), architecture.input.shape)
    cost = CostModel(traced)
    sites = default_exits(traced, cost, find_exits(traced, cost))[-exits:]
    classes = AdaptiveModel(traced).num_classes
    heads = [Exit(site, ExitHead(site.channels, classes, channel_axis=site.channel_axis)) for site in sites]
    return AdaptiveModel(traced, heads).eval()


def force(model: AdaptiveModel, images: Tensor, leave: list[float]) -> None:
    """Set thresholds so that of `images` the parts `leave` go at each exit, as nearly as can be."""
    score = model.policy.score
    with torch.inference_mode():
        scores = [SCORES[score](logits) for logits in model.dense(images)[1].values()]
    inside = torch.ones(len(images), dtype=torch.bool)
    thresholds = []
    for values, part in zip(scores, leave, strict=True):
        count = round(part * len(images))
        ranked = values[inside].sort(descending=True).values
        # Midway between two scores: rounding must not move a sample over the threshold.
        thresholds.append(float((ranked[count - 1] + ranked[count]) / 2))
        inside &= values < thresholds[-1]
    model.policy = ThresholdPolicy(tuple(thresholds), score)


def measure(name: str, batch: int, leave: list[float], rounds: int, count: int) -> dict[str, float]:
    """Time the exiting network against the static one on images in batches of `batch`."""
    model = exiting_network(name, len(leave))
    exiting = optimize(model)
    static = optimize(AdaptiveModel(model.backbone()).eval())
    shape = model.traced.input_shape
    batches = max(1, count // batch)
    images = torch.randn(batch * batches, *shape, generator=torch.Generator().manual_seed(1))
    force(exiting, images, leave)
    parts = images.split(batch)
    with torch.inference_mode():
        macs = torch.tensor(exiting.exit_macs(exiting.policy))[exiting.run(images).exit_index]

        def run(network: AdaptiveModel) -> None:
            for part in parts:
                network(part)

        ours, theirs = interleaved([lambda: run(exiting), lambda: run(static)], rounds)
    kept = float(macs.double().mean()) / static.cost.total
    ratio = median_ratio(ours, theirs)
    return {
        "ms": 1e3 * statistics.median(ours) / len(parts),
        "macs": kept,
        "time": ratio,
        "gap": ratio - kept,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default="adaptify:cifar_resnet56,torchvision:resnet50")
    parser.add_argument("--batches", default="1,8,64")
    parser.add_argument("--leave", default="0.3,0.3")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=64, help="at least one batch of them")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    leave = [float(part) for part in arguments.leave.split(",")]
    print(f"{'network':28s} {'batch':>5s} {'ms':>8s} {'MACs':>6s} {'time':>6s} {'gap':>7s}")
    for name in arguments.networks.split(","):
        for batch in map(int, arguments.batches.split(",")):
            row = measure(name, batch, leave, arguments.rounds, arguments.images)
            figures = f"{row['ms']:8.2f} {row['macs']:6.3f} {row['time']:6.3f} {row['gap']:+7.3f}"
            print(f"{name:28s} {batch:5d} {figures}")


if __name__ == "__main__":
    main()
