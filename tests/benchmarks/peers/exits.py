"""Early exits on a pretrained network: accuracy at equal MACs, seconds to get there, and time.

Both see the same training images as often, keep the network's weights as they are, choose thresholds on the
same held-out images and are judged on the same test images. For each budget earlyon's calibration comes
first; ours then chooses among what takes no more MACs on the held-out images. Heads count in both.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptify.assembly import assemble
from adaptify.checkpoint.load import LoadedModel, load_model
from adaptify.data import Data, open_data
from adaptify.graph.cost import CostModel
from adaptify.graph.trace import Traced, trace
from adaptify.methods import FitContext
from adaptify.methods.base import ExitFit
from adaptify.methods.dgate import DGate, Gates, Train
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.frontier import Frontier
from adaptify.runtime.optimize import optimize
from adaptify.runtime.policy import ThresholdPolicy
from adaptify.training.calibrate import search_thresholds
from adaptify.training.records import ExitRecords
from tests.benchmarks.pruning.markdown import print_head, print_row
from tests.benchmarks.timing import interleaved, median_ratio

STAGES = ("layer1", "layer2", "layer3")  # where earlyon's own CIFAR ResNet has its exits
RECIPE = ("layer1", "layer2.4", "layer2", "layer3.2", "layer3.5")  # those of dgate/resnet56_cifar10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True, help="as `adaptify retrofit --data` takes it")
    parser.add_argument("--epochs", type=int, default=4, help="of both; ours runs the network once for all")
    parser.add_argument("--budgets", default="0.5,0.6,0.7,0.8")
    parser.add_argument("--timed", type=float, default=0.6, help="budget at which time is measured")
    parser.add_argument("--images", type=int, default=64, help="test images that are timed")


@dataclass(frozen=True)
class Ours:
    """Our exits, trained."""

    model: AdaptiveModel
    fitted: ExitFit
    seconds: float

    @property
    def frontier(self) -> Frontier:
        """Of the held-out images."""
        records = self.fitted.holdout
        macs = self.model.exit_macs()
        return search_thresholds(records.scores, _right(records), macs, self.model.cost.total)

    def at(self, kept: float) -> tuple[ThresholdPolicy, float, float]:
        """The best policy on held-out images within a part of the MACs; accuracy and MACs on test images."""
        point = self.frontier.choose(max_macs=kept)
        policy = ThresholdPolicy(point.thresholds, self.fitted.score)
        records = self.fitted.test
        left = records.exit_index(policy)
        rows = torch.arange(len(left))
        macs = torch.tensor(self.model.exit_macs(policy)).double()[left].mean()
        right = _right(records)[left, rows].double().mean()
        return policy, float(right), float(macs) / self.model.cost.total


def _right(records: ExitRecords) -> Tensor:
    return records.predictions == records.labels


def run(arguments: argparse.Namespace) -> None:
    """Print the tables."""
    from tests.benchmarks.peers import theirs

    loaded = load_model(arguments.checkpoint)
    data = open_data(arguments.data, input=loaded.architecture.input)
    shape = loaded.architecture.input.shape
    traced = trace(loaded.module.eval(), shape)
    own = {
        "adaptify, recipe": fit_ours(traced, data, RECIPE, arguments.epochs),
        "adaptify, two exits": fit_ours(traced, data, STAGES[:2], arguments.epochs),
    }
    others = {}
    for name, sites in {"earlyon, its exits": STAGES, "earlyon, our exits": RECIPE}.items():
        started = time.perf_counter()
        model = theirs.wrap(copy.deepcopy(loaded.module), sites, 10, shape, hidden=64)
        theirs.train(model, data.train, arguments.epochs)
        theirs.calibrate(model, data.holdout, arguments.timed)
        others[name] = (model, time.perf_counter() - started)
    budgets = [float(budget) for budget in arguments.budgets.split(",")]
    title = (
        f"{loaded.architecture.name}, {len(data.train)} images, {arguments.epochs} epochs; accuracy (MACs)"
    )
    print_head(title, ["tool", "seconds", *(f"budget {budget}" for budget in budgets)])
    limits = {}
    for name, (model, seconds) in others.items():
        held, tested = (theirs.observe(model, split) for split in (data.holdout, data.test))
        cells = []
        for budget in budgets:
            theirs.calibrate(model, data.holdout, budget)
            accuracy, kept = _judge(model, traced, tested)
            limits[name, budget] = _judge(model, traced, held)[1]
            cells.append(f"{accuracy:.2%} ({kept:.3f})")
        print_row([name, f"{seconds:.0f}", *cells])
    for name, mine in own.items():
        for other in others:
            found = [mine.at(limits[other, budget]) for budget in budgets]
            cells = [f"{accuracy:.2%} ({kept:.3f})" for _, accuracy, kept in found]
            print_row([f"{name}, at the MACs of {other}", f"{mine.seconds:.0f}", *cells])
    model, _ = others["earlyon, its exits"]
    theirs.calibrate(model, data.holdout, arguments.timed)
    limit = _judge(model, traced, theirs.observe(model, data.holdout))[1]
    mine = own["adaptify, recipe"]
    policy, *_ = mine.at(limit)
    images, _ = next(iter(data.test.batches(arguments.images, shuffle=True)))
    time_both(mine.model, policy, model, loaded, images, arguments)


def fit_ours(traced: Traced, data: Data, sites: Sequence[str], epochs: int) -> Ours:
    """Train gates as the recipe does, but in as many epochs as are asked for."""
    started = time.perf_counter()
    method = DGate(Gates(sites=tuple(sites), pool=4, score="margin"), Train(epochs=epochs))
    steps = method.place(traced, CostModel(traced), 10)
    model = assemble(traced.with_own_tensors(), steps).eval()
    assert isinstance(model, AdaptiveModel)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        fitted = method.fit(model, data, FitContext(torch.device("cpu"), 256, 0, scratch, scratch))
    done = Ours(model, fitted, 0.0)
    _ = done.frontier
    return replace(done, seconds=time.perf_counter() - started)


def _judge(model: Any, traced: Traced, seen: tuple[list[Tensor], Tensor]) -> tuple[float, float]:
    """Accuracy, and the part of the MACs, of images that leave one by one."""
    from tests.benchmarks.peers import theirs

    logits, labels = seen
    left = theirs.leaves(model, logits)
    predictions = torch.stack([part.argmax(1) for part in logits])[left, torch.arange(len(left))]
    macs = torch.tensor(theirs.exit_macs(model, traced)).double()
    return float((predictions == labels).double().mean()), float(macs[left].mean() / macs_of(traced))


def macs_of(traced: Traced) -> int:
    """MACs of a network."""
    return CostModel(traced).total


def time_both(
    ours: AdaptiveModel,
    policy: ThresholdPolicy,
    model: Any,
    loaded: LoadedModel,
    images: Tensor,
    arguments: argparse.Namespace,
) -> None:
    """Print milliseconds an image, and times the static network's, in turns on the same images."""
    from tests.benchmarks.peers import theirs

    shape = loaded.architecture.input.shape
    traced = trace(loaded.module.eval(), shape)
    fast = optimize(ours)
    fast.policy = policy
    folded = theirs.better_form(loaded.module, shape)
    better = theirs.wrap(folded, _layers(model), model.config.num_classes, shape, hidden=64)
    better.exit_heads.load_state_dict(model.exit_heads.state_dict())
    better.config = model.config
    static = optimize(AdaptiveModel(traced).eval())
    plain: nn.Module = loaded.module
    print_head(
        "Milliseconds an image, and (in brackets) times the optimised network without exits",
        ["batch", "static, eager", "static, optimised", "earlyon", "earlyon, folded", "adaptify"],
    )
    macs = torch.tensor(theirs.exit_macs(model, traced)).double() / macs_of(traced)
    mine = torch.tensor(fast.exit_macs(policy)).double() / macs_of(traced)
    with torch.inference_mode():
        for size in arguments.batch_sizes:
            parts = images.split(size)
            ways = [plain, static, theirs.runner(model), theirs.runner(better), fast]
            seconds = interleaved(
                [partial(_all, way, parts) for way in ways], arguments.rounds, 1, clock=arguments.clock
            )
            cells = [
                f"{1000 * sorted(own)[len(own) // 2] / len(images):.2f} ({median_ratio(own, seconds[1]):.2f})"
                for own in seconds
            ]
            print_row([size, *cells])
            taken = [theirs.runner(model)(part) for part in parts]
            spent = sum(float(macs[exit_]) * len(part) for exit_, part in zip(taken, parts, strict=True))
            left = torch.cat([fast.run(part).exit_index for part in parts])
            print(f"MACs on these images: earlyon {spent / len(images):.3f}, ours {mine[left].mean():.3f}")


def _layers(model: Any) -> list[str]:
    return [point.layer_name for point in model.config.exit_points]


def _all(way: Any, parts: Sequence[Tensor]) -> None:
    for part in parts:
        way(part)
