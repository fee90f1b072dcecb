"""Does time fall as MACs fall, where gates look at samples? Against the same network without gates.

    python -m tests.benchmarks.skipping blocks [--rates 1,0.8,0.6,0.4] [--batches 1,8,32] [--threads 1]
    python -m tests.benchmarks.skipping channels [--rates 1,0.75,0.5,0.25] [--patterns 4]

Weights are random, and what gates decide is replaced: they are computed as always, then `blocks` runs each
block for a share of the images, `channels` opens a share of each layer's gates. Both networks have BatchNorm
folded, channels_last memory and fused convolutions. The gap is the ratio of times minus the ratio of MACs,
gates included in both.

Images ask for one of `--patterns` sets of channels in each block. With gates that have polarised there are
few; `--patterns 0` gives every image its own, which no program can be kept for.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from adaptify.gate_assembly import place_gates
from adaptify.graph.cost import CostModel
from adaptify.graph.gating import Decide
from adaptify.graph.trace import Traced, trace
from adaptify.methods import find_method
from adaptify.models.registry import resolve
from adaptify.plan import PlaceGates, PlaceMaskNet
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.allocator import keep_freed_memory
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.optimize import optimize
from adaptify.runtime.skipping.model import SkippingModel
from tests.benchmarks.timing import interleaved, median_ratio


def gated(name: str, what: str, per: str = "block") -> GatedModel:
    """The architecture `name` with random weights and untrained gates at blocks or at channels."""
    architecture = resolve(name)
    torch.manual_seed(0)
    traced: Traced = trace(architecture.build().eval(), architecture.input.shape)
    kind, options = {
        "blocks": ("sgad", {}),
        "channels": ("gumbel", {"kind": "dependent", "positions": ("channels",), "per": per}),
    }[what]
    method = find_method(kind)
    placing = method(method.Gates(**options), method.Train())
    (step,) = placing.place(traced, CostModel(traced), 10)  # type: ignore[attr-defined]
    assert isinstance(step, (PlaceGates, PlaceMaskNet))
    return place_gates(traced, step).eval()


def forced(model: GatedModel, gates: Tensor) -> Callable[[], Decide]:
    """Makes what decides as `gates` (N, K) say, whatever the networks of the gates do, for one batch each."""
    parts = gates.split([decider.gates for decider in model.deciders], 1)
    policy = model.policy

    def start() -> Decide:
        left = iter(parts)

        def decide(odds: Tensor) -> Tensor:
            policy.decide(odds)  # takes its time, as always
            return next(left)

        return decide

    return start


def draw(model: GatedModel, images: int, rate: float, patterns: int) -> Tensor:
    """Gates (N, K) of which a share `rate` is open: of the images for a block, of the gates for channels."""
    generator = torch.Generator().manual_seed(1)
    columns = []
    for site in model.sites:
        if site.position == "layer":
            order = torch.rand(images, 1, generator=generator).argsort(0)
            columns.append((order < round(rate * images)).float() if images > 1 else _coin(rate, generator))
            continue
        rows = patterns or images
        order = torch.rand(rows, site.gates, generator=generator).argsort(1)
        table = (order < round(rate * site.gates)).float()
        columns.append(table[torch.arange(images) % rows])
    return torch.cat(columns, 1)


def _coin(rate: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(1, 1, generator=generator) < rate).float()


def measure(
    model: GatedModel,
    fast: SkippingModel,
    static: AdaptiveModel,
    *,
    rate: float,
    batch: int,
    rounds: int,
    count: int,
    patterns: int,
) -> dict[str, float]:
    """Time the network under forced gates against the static one on images in batches of `batch`."""
    count = max(batch, count - count % batch)
    images = torch.randn(count, *model.traced.input_shape, generator=torch.Generator().manual_seed(1))
    gates = draw(model, count, rate, patterns)
    parts = images.split(batch)
    decided = [forced(model, part) for part in gates.split(batch)]
    macs = float(model.gate_cost(gates.double()).mean()) + model.decider_macs
    with torch.inference_mode():

        def ours() -> None:
            for part, wanted in zip(parts, decided, strict=True):
                fast.decide(part, wanted())

        def theirs() -> None:
            for part in parts:
                static(part)

        for part, wanted in zip(parts, decided, strict=True):
            fast.warm_up(part, wanted())
        ours()
        seconds = interleaved([ours, theirs], rounds)
    ratio, kept = median_ratio(*seconds), macs / model.cost.total
    return {
        "ms": 1e3 * statistics.median(seconds[0]) / len(parts),
        "macs": kept,
        "time": ratio,
        "gap": ratio - kept,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("blocks", "channels"))
    parser.add_argument("--networks", default="torchvision:resnet50")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--rates", default="1,0.8,0.6,0.4")
    parser.add_argument("--patterns", type=int, default=4)
    parser.add_argument("--per", choices=("block", "stage"), default="block", help="of gates at channels")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=16, help="at least one batch of them")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    print(f"{'network':28s} {'batch':>5s} {'rate':>5s} {'ms':>8s} {'MACs':>6s} {'time':>6s} {'gap':>7s}")
    for name in arguments.networks.split(","):
        model = gated(name, arguments.what, arguments.per)
        fast, static = optimize(model), optimize(AdaptiveModel(model.backbone()).eval())
        for batch in map(int, arguments.batches.split(",")):
            for rate in map(float, arguments.rates.split(",")):
                row = measure(
                    model,
                    fast,
                    static,
                    rate=rate,
                    batch=batch,
                    rounds=arguments.rounds,
                    count=arguments.images,
                    patterns=arguments.patterns,
                )
                figures = f"{row['ms']:8.2f} {row['macs']:6.3f} {row['time']:6.3f} {row['gap']:+7.3f}"
                print(f"{name:28s} {batch:5d} {rate:5.2f} {figures}", flush=True)


if __name__ == "__main__":
    main()
