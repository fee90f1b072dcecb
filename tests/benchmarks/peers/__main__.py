"""Beside other tools, on the same checkpoint and images, in one run.

    python -m tests.benchmarks.peers exits  --checkpoint resnet56.th --data FOLDER     earlyon 0.3.0
    python -m tests.benchmarks.peers speed  --networks torchvision:resnet18            earlyon 0.3.0
    python -m tests.benchmarks.peers pruned --checkpoint resnet56.th --data FOLDER     Torch-Pruning 1.6.1

`exits` and `pruned` compare accuracy at equal MACs, seconds to get there, and time; `speed` compares time
alone, with random weights and exits that are made to let the same part of the images go. Without the other
tool there is nothing to compare with, and it is said how to install it. `COMMAND --help` lists what can be
made smaller.
"""

from __future__ import annotations

import argparse
import warnings

import torch

from adaptify.runtime.allocator import describe_allocator, keep_freed_memory
from tests.benchmarks.peers import exits, pruned, speed
from tests.benchmarks.timing import CLOCKS, add_clock

COMMANDS = {"exits": exits, "speed": speed, "pruned": pruned}


def main() -> None:
    """Run one of the comparisons."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("--threads", type=int, default=1)
        command.add_argument("--batch-sizes", default="1,8,32")
        command.add_argument("--rounds", type=int, default=9)
        add_clock(command)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args()
    arguments.clock = CLOCKS[arguments.clock]
    arguments.batch_sizes = [int(size) for size in arguments.batch_sizes.split(",")]
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")  # deprecations of other packages, between the rows
    keep_freed_memory()
    print(f"{arguments.threads} threads, torch {torch.__version__}, {describe_allocator()}")
    arguments.run(arguments)


if __name__ == "__main__":
    main()
