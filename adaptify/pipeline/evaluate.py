"""`evaluate`: what a network does on data, measured by running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptify import artifact
from adaptify.assembly import Adapted
from adaptify.data import Data, check_labels
from adaptify.errors import TargetError, UsageError
from adaptify.input_spec import InputSpec
from adaptify.models.registry import Architecture
from adaptify.pipeline import folder
from adaptify.pipeline.auto_batch import in_batches
from adaptify.pipeline.prepare import input_spec, open_network, open_section
from adaptify.progress import SILENT, Progress
from adaptify.recipe import DataSection, ModelSection, resolve
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.budget import Budget
from adaptify.runtime.device import pick_device
from adaptify.runtime.gate_policy import Policy
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.optimize import optimize
from adaptify.runtime.policy import ThresholdPolicy
from adaptify.runtime.skipping.model import SkippingModel
from adaptify.training.evaluate import evaluate
from adaptify.training.gate_records import observe_gates


@dataclass(frozen=True)
class ExitResult:
    """What left at one exit; the last one is the network's own output.

    Attributes:
        name: Name of the site.
        samples: How many left here.
        share: The same as a fraction.
        macs: MACs of a sample that leaves here.
        accuracy: Their accuracy, or None when there are none.
    """

    name: str
    samples: int
    share: float
    macs: int
    accuracy: float | None


@dataclass(frozen=True)
class BudgetResult:
    """What the network did on the test samples within one budget.

    Attributes:
        asked: The budget: a fraction of the network's MACs, or a number of them.
        absolute: Whether it is a number of MACs.
        policy: The policy that was chosen for it on held-out samples, as JSON.
        accuracy: Top-1 accuracy in [0, 1].
        macs: Mean MACs per sample.
        kept: The same as a fraction of those of the network without gates.
        seconds: Time of the network alone.
    """

    asked: float
    absolute: bool
    policy: dict[str, Any]
    accuracy: float
    macs: float
    kept: float
    seconds: float


@dataclass(frozen=True)
class MissedBudget:
    """A budget that is less than the network can do with.

    Attributes:
        asked: The budget, as in `BudgetResult`.
        absolute: Likewise.
        reason: What is out of reach.
        hint: What can be reached, and how to come further.
    """

    asked: float
    absolute: bool
    reason: str
    hint: str


@dataclass(frozen=True)
class Result:
    """What a network did on the test samples.

    Attributes:
        target: What was run.
        data: The data set.
        samples: Number of test samples.
        accuracy: Top-1 accuracy in [0, 1].
        macs: Mean MACs per sample.
        base_macs: MACs per sample of the network without exits.
        seconds: Time of the network alone.
        exits: One row per exit and the output.
        budgets: What came of each budget that was asked for and can be reached.
        missed: Those that cannot.
    """

    target: str
    data: str
    samples: int
    accuracy: float
    macs: float
    base_macs: int
    seconds: float
    exits: tuple[ExitResult, ...]
    budgets: tuple[BudgetResult, ...] = ()
    missed: tuple[MissedBudget, ...] = ()


def evaluate_target(
    target: Path,
    *,
    model: ModelSection | None = None,
    data: DataSection | None = None,
    budgets: Sequence[Budget] = (),
    batch_size: int = 256,
    auto_batch: bool = False,
    device: str = "auto",
    trust_code: bool = False,
    progress: Progress = SILENT,
) -> Result:
    """Run a run folder, an artifact or a plain checkpoint over the test part of a data set.

    Args:
        target: What to run.
        model: How to load it, if it is a plain checkpoint.
        data: The data set; a run folder knows its own.
        budgets: What else to run it within, beside its own policy.
        batch_size: Images per batch.
        auto_batch: Whether to halve that where the memory does not suffice.
        device: auto, cpu, cuda or cuda:N.
        trust_code: Whether an artifact may be built by code of the user.
        progress: Told how far it is.

    Raises:
        UsageError: The data is missing or does not fit, or the network knows no budgets.
        ModelError: The target cannot be loaded.
        TargetError: Every budget is less than the network can do with.
    """
    pick_device(device)  # what is wrong with it is said before anything is read
    recipe_file = target / folder.RECIPE
    if data is None and recipe_file.is_file():
        data = resolve(None, file=recipe_file).data
    if data is None or not data.source:
        raise UsageError(f"no data to evaluate {target} on", "Say which images: --data FOLDER.")
    network, spec = open_target(target, model, data, trust_code)
    _policies(network, budgets)
    opened = open_section(data, spec, progress=progress)
    return evaluate_network(
        network,
        opened,
        name=str(target),
        budgets=budgets,
        batch_size=batch_size,
        auto_batch=auto_batch,
        device=device,
        progress=progress,
    )


def evaluate_network(
    network: Adapted,
    data: Data,
    *,
    name: str,
    budgets: Sequence[Budget] = (),
    batch_size: int = 256,
    auto_batch: bool = False,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Result:
    """Run a network over the test part of a data set.

    Args:
        network: In evaluation mode.
        data: The data set.
        name: What the result calls the network.
        budgets: What else to run it within, beside its own policy.
        batch_size: Images per batch.
        auto_batch: Whether to halve that where the memory does not suffice.
        device: auto, cpu, cuda or cuda:N.
        progress: Told how far it is.

    Raises:
        UsageError: The data does not fit, or the network knows no budgets.
        TargetError: Every budget is less than the network can do with.
    """
    where = pick_device(device)
    policies, missed = _policies(network, budgets)
    check_labels(data, network.num_classes)
    # Gates that are the same for all samples leave nothing to skip at run time.
    is_static = isinstance(network, GatedModel) and not network.per_sample
    runs = network.to(where) if is_static else optimize(network, where)

    def measure() -> _Measured:
        def once(size: int) -> _Measured:
            return _measure(runs, data, size, where, progress)

        return in_batches(once, batch_size, halve=auto_batch, progress=progress)

    found = measure()
    rows = []
    for budget, policy in policies:
        runs.policy = policy
        seen = measure()
        rows.append(
            BudgetResult(
                asked=budget.amount,
                absolute=budget.absolute,
                policy=policy.to_json(),
                accuracy=seen.accuracy,
                macs=seen.macs,
                kept=seen.macs / network.cost.total,
                seconds=seen.seconds,
            )
        )
    return Result(
        target=name,
        data=data.name,
        samples=len(data.test),
        accuracy=found.accuracy,
        macs=found.macs,
        base_macs=network.cost.total,
        seconds=found.seconds,
        exits=found.exits,
        budgets=tuple(rows),
        missed=tuple(missed),
    )


def _policies(
    network: Adapted, budgets: Sequence[Budget]
) -> tuple[list[tuple[Budget, Policy | ThresholdPolicy]], list[MissedBudget]]:
    """The policy for each budget, and the budgets that none keeps to; refuses where that is all of them."""
    found, missed = [], []
    for budget in budgets:
        try:
            found.append((budget, network.policy_within(budget)))
        except TargetError as error:
            missed.append(MissedBudget(budget.amount, budget.absolute, error.message, error.hint))
    if missed and not found:
        raise TargetError(missed[0].reason, missed[0].hint)
    return found, missed


@dataclass(frozen=True)
class _Measured:
    """What a network did under one policy; see `Result`."""

    accuracy: float
    macs: float
    seconds: float
    exits: tuple[ExitResult, ...]


def _measure(
    runs: Adapted | SkippingModel, data: Data, batch_size: int, device: torch.device, progress: Progress
) -> _Measured:
    """Run a network on `device` over the test samples."""
    if isinstance(runs, AdaptiveModel):
        found = evaluate(runs, data.test, batch_size=batch_size, device=device, progress=progress)
        macs = runs.exit_macs(runs.policy)
        mean = float(found.macs(macs).double().mean())
        right = found.predictions == found.labels
        return _Measured(
            found.accuracy, mean, found.seconds or 0.0, _exits(runs, found.exit_index, right, macs)
        )
    seen = observe_gates(runs, data.test, batch_size=batch_size, device=device, progress=progress)
    mean = float(seen.macs.mean())
    row = ExitResult("output", len(seen.labels), 1.0, round(mean), seen.accuracy)
    return _Measured(seen.accuracy, mean, seen.seconds, (row,))


def _exits(
    model: AdaptiveModel, exit_index: Tensor, right: Tensor, macs: Sequence[int]
) -> tuple[ExitResult, ...]:
    rows = []
    for index, name in enumerate([*(item.site.name for item in model.exits), "output"]):
        left = exit_index == index
        accuracy = float(right[left].double().mean()) if left.any() else None
        rows.append(ExitResult(name, int(left.sum()), float(left.double().mean()), macs[index], accuracy))
    return tuple(rows)


def open_target(
    target: Path, model: ModelSection | None, data: DataSection, trust_code: bool
) -> tuple[Adapted, InputSpec]:
    """Load what is to be run, and say what images it takes.

    Args:
        target: A run folder, an artifact or a plain checkpoint.
        model: How to load it, if it is a plain checkpoint.
        data: How images are shown to it.
        trust_code: Whether an artifact may be built by code of the user.

    Raises:
        UsageError: It takes no images of the size that `data` asks for.
        ModelError: It cannot be loaded.
    """
    if target.is_dir() or artifact.is_artifact(target):
        made_for = Architecture.from_json(artifact.read_plan(target).architecture).input
        spec = input_spec(made_for, data)
        if spec.shape != made_for.shape:
            raise UsageError(
                f"{target} is made for images of {made_for.height}x{made_for.width}, "
                f"not {spec.height}x{spec.width}",
                "Leave --input-size out: images are scaled.",
            )
        return artifact.load(target, trust_code=trust_code), spec
    network = open_network(model or ModelSection(checkpoint=str(target)), data)
    return AdaptiveModel(network.traced).eval(), network.architecture.input
