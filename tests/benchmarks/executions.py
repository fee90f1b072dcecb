"""Saliences before the first layer of their block, or beside it: what do the two executions of LC-Net take?

    python -m tests.benchmarks.executions [--networks adaptify:cifar_resnet20] [--batches 1,64] [--open 0.5]

Weights are random, and what saliences say is replaced: they are computed as always, then each block runs for
a share of the images, with a share of the channels of its first layer, the same set for all of them. Both run
in turns with the network without gates, and times are relative to its time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from adaptify.gate_assembly import place_gates
from adaptify.graph.cost import CostModel
from adaptify.graph.trace import Traced, trace
from adaptify.methods.lcnet import Gates, LcNet, Train
from adaptify.models.registry import resolve
from adaptify.plan import PlaceSaliences
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.allocator import keep_freed_memory
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.optimize import optimize
from adaptify.runtime.skipping.model import SkippingModel
from tests.benchmarks.skipping import draw, forced
from tests.benchmarks.timing import interleaved, median_ratio

EXECUTIONS = ("sequential", "parallel")


def salient(name: str, execution: str) -> GatedModel:
    """The architecture `name` with random weights and untrained saliences."""
    architecture = resolve(name)
    torch.manual_seed(0)
    traced: Traced = trace(architecture.build().eval(), architecture.input.shape)
    method = LcNet(Gates.model_validate({"execution": execution}), Train())
    (step,) = method.place(traced, CostModel(traced), 10)
    assert isinstance(step, PlaceSaliences)
    return place_gates(traced, step).eval()


def runner(
    model: GatedModel, fast: SkippingModel, images: Tensor, gates: Tensor, batch: int
) -> Callable[[], None]:
    """A function that runs all images in batches under forced gates, with what it needs built already."""
    decided = [forced(model, part) for part in gates.split(batch)]
    parts = list(zip(images.split(batch), decided, strict=True))
    for part, wanted in parts:
        fast.warm_up(part, wanted())

    def run() -> None:
        for part, wanted in parts:
            fast.decide(part, wanted())

    return run


def run_static(static: AdaptiveModel, parts: Sequence[Tensor]) -> None:
    """Run the network without gates."""
    for part in parts:
        static(part)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default="adaptify:cifar_resnet20,adaptify:cifar_resnet56")
    parser.add_argument("--batches", default="1,64")
    parser.add_argument("--open", type=float, default=0.5, help="share of the channels, and of the images")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--images", type=int, default=16, help="at least one batch of them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print(
        f"{'network':28s} {'batch':>5s} "
        + " ".join(f"{name + ': MACs':>16s} {'time':>6s}" for name in EXECUTIONS)
    )
    for name in arguments.networks.split(","):
        models = [salient(name, execution) for execution in EXECUTIONS]
        fasts = [optimize(model) for model in models]
        static = optimize(AdaptiveModel(models[0].backbone()).eval())
        for batch in map(int, arguments.batches.split(",")):
            count = max(batch, arguments.images - arguments.images % batch)
            generator = torch.Generator().manual_seed(1)
            images = torch.randn(count, *models[0].traced.input_shape, generator=generator)
            gates = draw(models[0], count, arguments.open, patterns=1)
            with torch.inference_mode():
                ours = [
                    runner(model, fast, images, gates, batch)
                    for model, fast in zip(models, fasts, strict=True)
                ]

                base = partial(run_static, static, images.split(batch))
                *seconds, whole = interleaved([*ours, base], arguments.rounds)
            figures = []
            for model, own in zip(models, seconds, strict=True):
                macs = float(model.gate_cost(gates.double()).mean()) + model.decider_macs
                figures.append(f"{macs / model.cost.total:16.3f} {median_ratio(own, whole):6.3f}")
            print(f"{name:28s} {batch:5d} {' '.join(figures)}", flush=True)


if __name__ == "__main__":
    main()
