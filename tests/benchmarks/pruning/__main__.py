"""Measurements of pruning: how much it covers, how long it takes, what it saves, what accuracy comes back.

    python -m tests.benchmarks.pruning coverage     families pruned to half the MACs, held against masking
    python -m tests.benchmarks.pruning seconds      seconds to prune, beside Torch-Pruning
    python -m tests.benchmarks.pruning latency      time against MACs, in PyTorch and in onnxruntime
    python -m tests.benchmarks.pruning accuracy     after the same fine-tuning, beside Torch-Pruning

Each prints tables in Markdown, row by row. `COMMAND --help` lists what can be chosen.
"""

from __future__ import annotations

import argparse
import warnings

import torch

from adaptify.runtime.allocator import keep_freed_memory
from tests.benchmarks.pruning import accuracy, coverage, latency, seconds

COMMANDS = {
    "coverage": coverage,
    "seconds": seconds,
    "latency": latency,
    "accuracy": accuracy,
}


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.pruning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("--threads", type=int, default=2)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")  # deprecations of other packages, between the rows
    keep_freed_memory()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
