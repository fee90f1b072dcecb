"""What keeping checkpoints costs: `python -m tests.benchmarks.state_overhead NETWORK [EPOCH]`.

Trains a network on synthetic images and times, beside its steps, what is written after an epoch: the state
from which training can go on, and the weights. Prints how much that is of an epoch of EPOCH images.
On a busy machine trust the processor time; waiting for the disk is in the other.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from adaptify.data import open_data
from adaptify.models.registry import resolve
from adaptify.training.history import Validation
from adaptify.training.loop import train
from adaptify.training.objective import Classification
from adaptify.training.options import LoopOptions
from adaptify.training.snapshots import Snapshots
from adaptify.training.state import States

EPOCHS, STEPS = 5, 2


class Watch:
    """Times the calls of a method: processor seconds and seconds in all."""

    def __init__(self, owner: type, name: str) -> None:
        self.rows: list[tuple[float, float]] = []
        method: Callable[..., Any] = getattr(owner, name)

        def timed(*given: Any, **named: Any) -> Any:
            began = time.process_time(), time.perf_counter()
            result = method(*given, **named)
            self.rows.append((time.process_time() - began[0], time.perf_counter() - began[1]))
            return result

        setattr(owner, name, timed)

    def median(self) -> tuple[float, float]:
        """The median call."""
        processor, wall = (statistics.median(column) for column in zip(*self.rows, strict=True))
        return processor, wall


def main() -> None:
    """Measure one network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", help="as adaptify:digits_resnet")
    parser.add_argument("epoch", type=int, nargs="?", default=50_000, help="images of an epoch")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    architecture = resolve(asked.network)
    options = LoopOptions(epochs=EPOCHS, recalibrate=0, augment=False)
    images = STEPS * options.batch_size
    data = open_data(f"fake:{2 * images}", input=architecture.input, parts=("train",))
    states, weights = Watch(States, "save"), Watch(Snapshots, "save")
    began = time.process_time(), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        train(
            architecture.build(),
            data,
            options,
            objective=Classification(),
            device="cpu",
            seed=0,
            folder=Path(folder),
            validate=lambda network: Validation(0.5),
            states=States(Path(folder, "states")),
        )
        size = max(file.stat().st_size for file in Path(folder).rglob("epoch-*"))
    spent = time.process_time() - began[0], time.perf_counter() - began[1]
    steps = EPOCHS * (len(data.train) // options.batch_size)
    for index, clock in enumerate(("processor", "in all")):
        written = sum(row[index] for watch in (states, weights) for row in watch.rows)
        step = (spent[index] - written) / steps
        state, both = states.median()[index], states.median()[index] + weights.median()[index]
        whole = step * (asked.epoch // options.batch_size)
        print(
            f"{clock}: step {1000 * step:.1f} ms, state {1000 * state:.1f} ms, "
            f"with weights {1000 * both:.1f} ms: {100 * both / whole:.2f}% of {asked.epoch} images"
        )
    print(f"a state: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
