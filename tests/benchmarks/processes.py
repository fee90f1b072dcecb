"""What it costs to share a training step.

`[torchrun --nproc-per-node 2 | python] -m tests.benchmarks.processes NETWORK BATCH STEPS`

Prints the median of a step on random images, on one thread a process: in wall-clock time, and in processor
time of all processes together, which a busy machine does not change as much.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from adaptify.models.registry import resolve
from adaptify.parallel import group
from adaptify.training.objective import Classification, Moment
from adaptify.training.spread import spread

_WARM_UP = 3


def main(name: str, batch: int, steps: int) -> str | None:
    """Train on random images; the main process tells what a step took."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    architecture = resolve(name)
    model = architecture.build().train().to(memory_format=torch.channels_last)
    own = batch // group.size()
    images = torch.randn(own, *architecture.input.shape).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (own,))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    objective, forward = Classification(), spread(model)
    walls, spent = [], []
    for step in range(_WARM_UP + steps):
        wall, processor = time.perf_counter(), time.process_time()
        moment = Moment(0, step, _WARM_UP + steps, 1)
        objective(forward, images, group.gather_rows(labels), moment).total.backward()
        group.average(parameter.grad for parameter in model.parameters() if parameter.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
        walls.append(1000 * (time.perf_counter() - wall))
        spent.append(1000 * (time.process_time() - processor))
    of_all = float(group.total(torch.tensor(statistics.median(spent[_WARM_UP:]))))
    if not group.is_main():
        return None
    wall_time = statistics.median(walls[_WARM_UP:])
    return (
        f"{name}, {group.size()} process(es), batches of {batch}, {steps} steps: {wall_time:.1f} ms a step, "
        f"{of_all:.1f} ms of processor time"
    )


if __name__ == "__main__":
    with group.processes():
        told = main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    if told is not None:
        print(told)
