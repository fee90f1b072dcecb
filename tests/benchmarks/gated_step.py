"""What gates cost in training: a step of a gated network against a step of the plain one, in turns.

    python -m tests.benchmarks.gated_step

CIFAR ResNet-56 with random weights and images, channel gates at every position, SGD with Nesterov momentum,
channels_last. A step is forward, backward and update.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from adaptify.assembly import assemble
from adaptify.graph.cost import CostModel
from adaptify.graph.trace import trace
from adaptify.methods.gumbel import Gates, Gumbel, Train
from adaptify.models.registry import resolve
from adaptify.runtime.gated import GatedModel
from adaptify.training.gate_loss import GateObjective, Target, TargetSchedule
from adaptify.training.objective import Classification, Moment, Objective
from tests.benchmarks.timing import interleaved, median_ratio


def main() -> None:
    """Print the ratio for independent and for dependent gates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--architecture", default="adaptify:cifar_resnet56")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    architecture = resolve(arguments.architecture)
    shape = architecture.input.shape
    images = torch.randn(arguments.batch, *shape).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (arguments.batch,))
    plain = architecture.build()
    steps = [step_of(plain, Classification(), images, labels)]
    for kind in ("independent", "dependent"):
        traced = trace(architecture.build().eval(), shape)
        method = Gumbel(Gates(kind=kind), Train())
        model = assemble(traced, method.place(traced, CostModel(traced), 10))
        assert isinstance(model, GatedModel)
        objective = GateObjective(model.gate_cost, Target(0.5, TargetSchedule()))
        steps.append(step_of(model, objective, images, labels))
    plain_seconds, *gated = interleaved(steps, arguments.rounds)
    for kind, seconds in zip(("independent", "dependent"), gated, strict=True):
        print(f"{kind}: {median_ratio(seconds, plain_seconds):.3f} of a plain step")


def step_of(
    model: nn.Module, objective: Objective, images: torch.Tensor, labels: torch.Tensor
) -> Callable[[], Any]:
    """One training step of `model`, to be called again and again."""
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    moment = Moment(epoch=0, step=0, steps=1, epochs=1)

    def step() -> None:
        optimizer.zero_grad()
        objective(model, images, labels, moment).total.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
