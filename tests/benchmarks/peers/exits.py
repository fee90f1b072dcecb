"""Early exits on a pretrained network: accuracy at equal MACs, seconds to get there, and time.

Each tool is used as its documentation says, with its own defaults, and ours with a recipe besides. Both see
the same training images, keep the network's weights as they are, choose thresholds on the same held-out
images and are judged on the same test images; heads count as MACs in both. For each budget earlyon's
calibration comes first, over its own grid of thresholds and over a finer one; ours then chooses among what
takes no more MACs on the held-out images.

Seconds go from the loaded network to predictions for the test images: training the exits, choosing
thresholds, and passing over the test images.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptify import recipe_library
from adaptify.assembly import assemble
from adaptify.checkpoint.load import load_model
from adaptify.data import Data, open_data
from adaptify.graph.cost import CostModel
from adaptify.graph.trace import Traced, trace
from adaptify.methods import FitContext
from adaptify.methods.base import ExitFit
from adaptify.methods.dgate import DGate, Gates, Train
from adaptify.recipe import check
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.frontier import Frontier
from adaptify.runtime.policy import ThresholdPolicy
from adaptify.training.calibrate import search_thresholds
from adaptify.training.records import ExitRecords
from tests.benchmarks.peers.times import time_both
from tests.benchmarks.pruning.markdown import print_head, print_row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True, help="as `adaptify retrofit --data` takes it")
    parser.add_argument("--recipe", help="of ours, beside the defaults")
    parser.add_argument("--size", type=int, help="side of the images, where it is not the architecture's")
    parser.add_argument("--epochs", default="20", help="of earlyon, numbers with commas between; its own: 20")
    parser.add_argument("--budgets", default="0.5,0.6,0.7,0.8,0.9")
    parser.add_argument("--timed", type=float, default=0.6, help="budget at which time is measured")
    parser.add_argument("--images", type=int, default=256, help="test images that are timed")


@dataclass(frozen=True)
class Ours:
    """Our exits, trained.

    Attributes:
        model: The network with its exits.
        fitted: What the exits say about held-out and test images.
        frontier: What thresholds give on held-out images.
        seconds: What it took.
    """

    model: AdaptiveModel
    fitted: ExitFit
    frontier: Frontier
    seconds: float

    def at(self, kept: float) -> tuple[ThresholdPolicy, float, float]:
        """The best policy on held-out images within a part of the MACs; accuracy and MACs on test images."""
        policy = ThresholdPolicy(self.frontier.choose(max_macs=kept).thresholds, self.fitted.score)
        records = self.fitted.test
        left = records.exit_index(policy)
        macs = torch.tensor(self.model.exit_macs(policy)).double()[left].mean()
        right = _right(records)[left, torch.arange(len(left))].double().mean()
        return policy, float(right), float(macs) / self.model.cost.total


def _right(records: ExitRecords) -> Tensor:
    return records.predictions == records.labels


def run(arguments: argparse.Namespace) -> None:
    """Print the tables."""
    from tests.benchmarks.peers import theirs

    loaded = load_model(arguments.checkpoint)
    spec = loaded.architecture.input
    if arguments.size:
        spec = replace(spec, height=arguments.size, width=arguments.size)
    data = open_data(arguments.data, input=spec)
    traced = trace(loaded.module.eval(), spec.shape)
    ready = theirs.READY[loaded.architecture.name]
    methods = {"defaults": DGate(Gates(), Train())}
    if arguments.recipe:
        recipe = check(recipe_library.find_recipe(arguments.recipe))
        methods["recipe"] = DGate(recipe.gates, recipe.train)
    own = {name: fit_ours(traced, data, method) for name, method in methods.items()}
    *_, best = own.values()
    sites = {"its exits": ready.sites, "our exits": [item.site.name for item in best.model.exits]}
    budgets, classes = [float(part) for part in arguments.budgets.split(",")], len(data.classes)
    print_head(
        f"{loaded.architecture.name}, {len(data.train)} images to train on; accuracy (MACs) on test images",
        ["tool", "seconds", *(f"budget {budget}" for budget in budgets)],
    )
    timed = None
    grids = {"its grid": None, "finer grid": theirs.FINE_GRID}
    for epochs in map(int, arguments.epochs.split(",")):
        for title, names in sites.items():
            started = time.perf_counter()
            model = theirs.wrap(copy.deepcopy(loaded.module), names, ready.hidden, classes, spec.shape)
            theirs.train(model, data.train, epochs)
            theirs.calibrate(model, data.holdout, arguments.timed)
            tested = theirs.observe(model, data.test)
            seconds = time.perf_counter() - started
            timed = timed or model
            held = theirs.observe(model, data.holdout)
            for kind, grid in grids.items():
                limits, cells = [], []
                for budget in budgets:
                    theirs.calibrate(model, data.holdout, budget, grid)
                    limits.append(_judge(model, traced, held)[1])
                    cells.append(_cell(*_judge(model, traced, tested)))
                print_row([f"earlyon, {title}, {epochs} epochs, {kind}", f"{seconds:.0f}", *cells])
                for name, mine in own.items():
                    cells = [_cell(*mine.at(limit)[1:]) for limit in limits]
                    print_row([f"adaptify, {name}, at these MACs", f"{mine.seconds:.0f}", *cells])
    theirs.calibrate(timed, data.holdout, arguments.timed, theirs.FINE_GRID)
    limit = _judge(timed, traced, theirs.observe(timed, data.holdout))[1]
    best.model.policy, *_ = best.at(limit)
    images, _ = next(iter(data.test.batches(arguments.images, shuffle=True)))
    time_both(best.model, timed, loaded.module, images, arguments)


def fit_ours(traced: Traced, data: Data, method: DGate) -> Ours:
    """Train exits as `adaptify retrofit --method dgate` does."""
    started = time.perf_counter()
    steps = method.place(traced, CostModel(traced), len(data.classes))
    model = assemble(traced.with_own_tensors(), steps).eval()
    assert isinstance(model, AdaptiveModel)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        fitted = method.fit(model, data, FitContext(torch.device("cpu"), 256, 0, scratch, scratch))
    held = fitted.holdout
    frontier = search_thresholds(held.scores, _right(held), model.exit_macs(), model.cost.total)
    return Ours(model, fitted, frontier, time.perf_counter() - started)


def _judge(model: Any, traced: Traced, seen: tuple[Sequence[Tensor], Tensor]) -> tuple[float, float]:
    """Accuracy, and the part of the MACs, of images that leave one by one."""
    from tests.benchmarks.peers import theirs

    logits, labels = seen
    left = theirs.leaves(model, logits)
    predictions = torch.stack([part.argmax(1) for part in logits])[left, torch.arange(len(left))]
    kept = theirs.exit_macs(model, traced)[left].mean()
    return float((predictions == labels).double().mean()), float(kept)


def _cell(accuracy: float, macs: float) -> str:
    return f"{accuracy:.2%} ({macs:.3f})"
