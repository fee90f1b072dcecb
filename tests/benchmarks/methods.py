"""Time, MACs and memory over methods and batch sizes, against the same network without exits or gates.

    python -m tests.benchmarks.methods [--networks adaptify:cifar_resnet56] [--batches 1,8,32] [--threads 1]

Weights are random, and what is decided is forced: 30% of the images leave at each of two exits; each block
runs for 60% of the images; 60% of the channels are open, in one of four sets; pruned networks keep half of
the MACs. What decides is computed all the same, and counts. All networks are in their fast form, and run in
turns with the network without; the gap is the ratio of times less the ratio of MACs. Memory is the most that
the fast form of a network adds to the process, its weights included.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from adaptify.assembly import Adapted
from adaptify.bench.memory import PeakMemory
from adaptify.models.registry import resolve
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.allocator import describe_allocator, keep_freed_memory
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.optimize import optimize
from tests.benchmarks.early_exit import exiting_network, force
from tests.benchmarks.executions import run_static, runner, salient
from tests.benchmarks.pruning.latency import WAYS
from tests.benchmarks.pruning.markdown import print_head, print_row
from tests.benchmarks.skipping import draw, gated
from tests.benchmarks.timing import CLOCKS, add_clock, interleaved, median_ratio

LEAVE, OPEN, PATTERNS, TARGET = [0.3, 0.3], 0.6, 4, 0.5


class Case(NamedTuple):
    """A network in its fast form.

    Attributes:
        run: Runs all images in batches.
        once: Runs one batch.
        macs: Mean MACs of an image.
    """

    run: Callable[[], object]
    once: Callable[[], object]
    macs: float


def _boosted(name: str) -> AdaptiveModel:
    model = exiting_network(name, len(LEAVE))
    return AdaptiveModel(model.traced, model.exits, boost=(0.5,) * len(LEAVE)).eval()


def _pruned(by: str) -> Callable[[str], AdaptiveModel]:
    def make(name: str) -> AdaptiveModel:
        architecture = resolve(name)
        torch.manual_seed(0)
        options = argparse.Namespace(target=TARGET, round_to=16)
        return AdaptiveModel(
            WAYS[by](architecture.build().eval(), architecture.input.shape, options)[1]
        ).eval()

    return make


METHODS: Mapping[str, Callable[[str], Adapted]] = {
    "d-gate: exits": lambda name: exiting_network(name, len(LEAVE)),
    "BoostNet: boosted exits": _boosted,
    "SGAD: blocks": lambda name: gated(name, "blocks"),
    "Gumbel: dependent gates, channels": lambda name: gated(name, "channels"),
    "LC-Net: blocks and channels": lambda name: salient(name, "sequential"),
    "pruned channels": _pruned("channels"),
    "pruned blocks": _pruned("blocks"),
}


def prepare(model: Adapted, images: Tensor, batch: int) -> Case:
    """Bring a network into its fast form, with decisions forced on `images`."""
    parts = images.split(batch)
    if isinstance(model, GatedModel):
        fast = optimize(model)
        gates = draw(model, len(images), OPEN, PATTERNS)
        macs = float(model.gate_cost(gates.double()).mean()) + model.decider_macs
        run = runner(model, fast, images, gates, batch)
        return Case(run, runner(model, fast, parts[0], gates[:batch], batch), macs)
    exiting = optimize(model)
    if exiting.exits:
        force(exiting, images, LEAVE)
    left = exiting.run(images).exit_index
    macs = float(torch.tensor(exiting.exit_macs(exiting.policy)).double()[left].mean())
    return Case(partial(run_static, exiting, parts), partial(exiting, parts[0]), macs)


@torch.inference_mode()
def measure(
    model: Adapted, whole: Adapted, images: Tensor, batch: int, arguments: argparse.Namespace
) -> list[str]:
    """Cells of a row: MACs, time and the gap as parts of the whole network's, and bytes of both."""
    cases, peaks = [], []
    for network in (model, whole):  # what PyTorch loads when it first runs something belongs to no network
        prepare(network, images, batch).once()
    for network in (model, whole):
        memory = PeakMemory(torch.device("cpu"))
        cases.append(prepare(network, images, batch))
        peaks.append(memory.of(cases[-1].once))
    clock = CLOCKS[arguments.clock]
    ratio = median_ratio(*interleaved([case.run for case in cases], arguments.rounds, clock=clock))
    kept = cases[0].macs / cases[1].macs
    told = ["-" if peak is None else f"{peak / 2**20:.0f}" for peak in peaks]
    return [f"{kept:.3f}", f"{ratio:.3f}", f"{ratio - kept:+.3f}", *told]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default="adaptify:cifar_resnet56,torchvision:resnet50")
    parser.add_argument("--methods", default="", help="parts of their names, commas between")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--images", type=int, default=32, help="at least one batch of them")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    add_clock(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    print(f"{arguments.threads} threads, torch {torch.__version__}, {describe_allocator()}")
    for name in arguments.networks.split(","):
        columns = ["method", "batch", "MACs", "time", "gap", "MiB", "MiB, without"]
        print_head(name, columns)
        for title, make in METHODS.items():
            if not any(part in title for part in arguments.methods.split(",")):
                continue
            model = make(name)
            whole = AdaptiveModel(exiting_network(name, 1).backbone()).eval()
            for batch in map(int, arguments.batches.split(",")):
                count = max(batch, arguments.images - arguments.images % batch)
                shape = whole.traced.input_shape
                images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))
                print_row([title, batch, *measure(model, whole, images, batch, arguments)])


if __name__ == "__main__":
    main()
