"""Accuracy after the same short fine-tuning, ours against Torch-Pruning, for public CIFAR ResNets.

    python -m tests.benchmarks.pruning accuracy --checkpoint resnet20.th,resnet56.th --data FOLDER --epochs 4

All networks are pruned to the same part of the MACs (as our cost model counts them, within 1% or as near as
there is), then trained by the same loop with the same options, seeds and order of images. Torch-Pruning does
not follow the zero padding of shortcuts without parameters (option A): what it prunes there does not run. It
is told to leave the layers that write the residual stream whole, and prunes inside the blocks. Ours does that
too where it says "inside blocks", and may take channels out of the stream where it does not.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from adaptify.checkpoint.load import load_model
from adaptify.data import Data, open_data
from adaptify.graph.channels import Channels
from adaptify.graph.cost import CostModel
from adaptify.graph.importance import score_channels
from adaptify.graph.trace import trace
from adaptify.training.evaluate import top1
from adaptify.training.loop import train
from adaptify.training.objective import Classification
from adaptify.training.options import LoopOptions
from adaptify.training.taylor import taylor_scores
from tests.benchmarks.pruning import ours
from tests.benchmarks.pruning.markdown import print_head, print_row

if TYPE_CHECKING:
    from tests.benchmarks.pruning.theirs import Way

Pruner = Callable[[nn.Module, tuple[int, ...]], nn.Module]

_JUDGED_BATCHES, _JUDGED_BATCH = 16, 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--checkpoint", required=True, help="files with commas between")
    parser.add_argument("--data", required=True, help="as `adaptify retrofit --data` takes it")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seeds", default="0", help="numbers with commas between")
    parser.add_argument("--target", type=float, default=0.5)
    parser.add_argument("--round-to", default="1,16", help="multiples of channels that ours keeps")
    parser.add_argument("--only", default="", help="parts of the names of ways to prune, commas between")
    parser.add_argument("--device", default="cpu")


def run(arguments: argparse.Namespace) -> None:
    """Print a table for each checkpoint; the last column is the mean over the seeds."""
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    options = LoopOptions(epochs=arguments.epochs, lr=arguments.lr, batch_size=arguments.batch_size)
    for file in arguments.checkpoint.split(","):
        loaded = load_model(file)
        shape = loaded.architecture.input.shape
        data = open_data(arguments.data, input=loaded.architecture.input)
        device = torch.device(arguments.device)
        whole = CostModel(trace(loaded.module.eval(), shape)).total
        before = top1(loaded.module.to(device), data.test, device)
        title = f"{loaded.architecture.name}, {before:.2%} before; {arguments.epochs} epochs"
        trained = [f"seed {seed}" for seed in seeds]
        print_head(title, ["pruned by", "MACs kept", "not trained", *trained, "mean"])
        for name, prune in pruners(arguments, data):
            if not any(part in name for part in arguments.only.split(",")):
                continue
            accuracies = []
            for seed in seeds:
                network = prune(loaded.module.cpu().eval(), shape)
                kept = CostModel(trace(network, shape)).total / whole
                untrained = top1(network.to(device), data.test, device)
                accuracies.append(tuned(network, data, options, device, seed))
            cells = [f"{accuracy:.2%}" for accuracy in (untrained, *accuracies)]
            print_row([name, f"{kept:.3f}", *cells, f"{statistics.mean(accuracies):.2%}"])


def tuned(network: nn.Module, data: Data, options: LoopOptions, device: torch.device, seed: int) -> float:
    """Accuracy on the test images after training."""
    with tempfile.TemporaryDirectory() as folder:
        train(
            network,
            data,
            options,
            objective=Classification(),
            device=device,
            seed=seed,
            folder=Path(folder),
        )
    return top1(network, data.test, device)


def pruners(arguments: argparse.Namespace, data: Data) -> Iterator[tuple[str, Pruner]]:
    from tests.benchmarks.pruning import theirs

    def taylor(channels: Channels) -> dict[str, torch.Tensor]:
        batches = data.train.batches(_JUDGED_BATCH, shuffle=True)
        return taylor_scores(channels, itertools.islice(batches, _JUDGED_BATCHES))

    for round_to in map(int, arguments.round_to.split(",")):
        for name, score in {"l2": score_channels, "taylor": taylor}.items():
            for where, scores in (("", score), (", inside blocks", _inside_blocks(score))):
                title = f"ours: {name}{where}, multiples of {round_to}"
                yield title, _ours(arguments.target, round_to, scores)
    for name, way in theirs.WAYS.items():
        yield f"Torch-Pruning: {name}", _theirs(arguments.target, way)


def _stream(model: nn.Module) -> list[str]:
    """Names of the layers of a CIFAR ResNet that write its residual stream."""
    return [name for name, _ in model.named_modules() if name == "conv1" or name.endswith(".conv2")]


def _inside_blocks(score: ours.Score) -> ours.Score:
    """The same scores, but for the residual stream, which is kept whole."""

    def scores(channels: Channels) -> dict[str, torch.Tensor]:
        found = score(channels)
        for group in channels.removable:
            if group.name in channels.streams:
                found[group.name] = torch.full((group.size,), torch.inf)
        return found

    return scores


def _ours(target: float, round_to: int, score: ours.Score) -> Pruner:
    return lambda model, shape: ours.prune(model, shape, target, round_to=round_to, score=score).traced.root


def _theirs(target: float, way: Way) -> Pruner:
    from tests.benchmarks.pruning.theirs import search

    def count(model: nn.Module, shape: tuple[int, ...]) -> float:
        return CostModel(trace(model, shape)).total

    def prune(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
        return search(model, shape, target, count=count, way=way, keep=_stream(model))[0]

    return prune
