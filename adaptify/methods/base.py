"""What a method is: its options, where its gates go, how they are trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor

from adaptify.bounds import brief
from adaptify.data import Data
from adaptify.errors import UsageError, did_you_mean
from adaptify.graph.channels import Channels
from adaptify.graph.cost import CostModel
from adaptify.graph.trace import Traced
from adaptify.plan import Step
from adaptify.progress import SILENT, Progress
from adaptify.settings import Section
from adaptify.training.history import History
from adaptify.training.records import ExitRecords
from adaptify.training.state import States

__all__ = ["Fit", "FitContext", "Method", "Section", "find_method", "method_names", "register"]


@dataclass(frozen=True)
class FitContext:
    """Where and how a method trains.

    Attributes:
        device: Where to compute.
        batch_size: Images in a batch that is not trained on.
        seed: Seed of everything random.
        scratch: An existing folder for large temporary files; the caller removes it.
        folder: The run folder, for metrics and checkpoints of the training.
        progress: Told how far the work is.
        states: The folder for the states of training, from which it goes on; None: it cannot be continued.
    """

    device: torch.device
    batch_size: int
    seed: int
    scratch: Path
    folder: Path
    progress: Progress = SILENT
    states: Path | None = None

    def states_of(self, part: str) -> States | None:
        """Where one of the trainings of this method keeps its states; each needs a name of its own."""
        return States(self.states / part) if self.states is not None else None


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What training gives, beside the trained gates.

    Attributes:
        timing: Seconds of each part of the work.
        notes: What the user should know.
    """

    timing: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ExitFit(Fit):
    """What training exits gives.

    Attributes:
        score: Which score of the exits decides (a key of `runtime.policy.SCORES`, or `GATE`).
        holdout: What each exit says about the samples that the policy is chosen on.
        test: The same for the samples that results are reported on.
        temperatures: What the logits of each exit were divided by before they were scored; None: 1.
        history: The training, epoch by epoch, where the network was trained with its exits.
    """

    score: str
    holdout: ExitRecords
    test: ExitRecords
    temperatures: tuple[float, ...] | None = None
    history: History | None = None


@dataclass(frozen=True, kw_only=True)
class GateFit(Fit):
    """What training a network with gates gives.

    Attributes:
        history: The training, epoch by epoch.
        activity: After each epoch: the mean probability of being open at each site, on held-out samples.
    """

    history: History
    activity: tuple[tuple[float, ...], ...]


GatesT = TypeVar("GatesT", bound=Section)
TrainT = TypeVar("TrainT", bound=Section)


class Method(ABC, Generic[GatesT, TrainT]):
    """A way to make a network spend less.

    Attributes:
        name: What the command line calls it.
        summary: One line for people.
        Gates: Options of the recipe's `gates` section: which gates there are, and where.
        Train: Options of the recipe's `train` section.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    Gates: ClassVar[type[Section]]
    Train: ClassVar[type[Section]]

    def __init__(self, gates: Section, train: Section) -> None:
        """Take the options of the recipe's `gates` and `train` sections."""
        self.gates = cast(GatesT, self.Gates.model_validate(gates.model_dump()))
        self.train = cast(TrainT, self.Train.model_validate(train.model_dump()))


class GatingMethod(Method[GatesT, TrainT]):
    """A method that puts gates into a network and trains them."""

    @abstractmethod
    def place(self, traced: Traced, cost: CostModel, classes: int) -> tuple[Step, ...]:
        """Choose where the gates go in a network with `classes` outputs.

        Raises:
            UsageError: A site that was asked for is not in the network.
            ModelError: The network has no place for the gates.
        """

    def check(self, model: Any) -> None:
        """Refuse what no training can reach, before data are opened; `model` is as `fit` gets it.

        Raises:
            TargetError: The target is out of reach.
        """

    @abstractmethod
    def fit(self, model: Any, data: Data, context: FitContext) -> Fit:
        """Train the network that `assembly.assemble` makes of the steps of `place`, in place."""


class JudgingMethod(Method[GatesT, TrainT]):
    """A method that judges the channels of a network as it is."""

    @property
    @abstractmethod
    def criterion(self) -> str:
        """What channels are judged by, for the user."""

    @property
    @abstractmethod
    def needs_images(self) -> bool:
        """Whether labelled images are needed."""

    @abstractmethod
    def scores(
        self, channels: Channels, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
    ) -> dict[str, Tensor]:
        """Return the scores (size,) of every removable group, by name; higher is more important.

        Args:
            channels: The channels of the network.
            batches: Images (B, C, H, W) and labels (B,) on `device`, if they are needed.
            device: Where to compute.
        """


_METHODS: dict[str, type[Method[Any, Any]]] = {}
_AnyMethod = TypeVar("_AnyMethod", bound=type[Method[Any, Any]])


def register(method: _AnyMethod) -> _AnyMethod:
    """Class decorator: make a method known by its name."""
    _METHODS[method.name] = method
    return method


def method_names() -> tuple[str, ...]:
    """Names of all methods: those of adaptify, and those of installed packages."""
    return tuple(sorted({*_METHODS, *_installed()}))


def find_method(name: str) -> type[Method[Any, Any]]:
    """Return the method called `name`.

    Packages make theirs known by an entry point of the group `adaptify.methods`; they are imported when they
    are asked for.

    Raises:
        UsageError: There is none, or what an installed package calls so is none.
    """
    if name in _METHODS:
        return _METHODS[name]
    point = _installed().get(name)
    if point is None:
        raise UsageError(
            f"unknown method '{brief(name)}'{did_you_mean(name, method_names())}",
            f"Methods: {', '.join(method_names())}.",
        )
    try:
        found = point.load()
    except Exception as error:
        raise UsageError(
            f"the method '{name}' cannot be imported from {point.value}: {type(error).__name__}: {error}",
            "Repair or uninstall the package that brings it.",
        ) from error
    if not (isinstance(found, type) and issubclass(found, Method) and found.name == name):
        raise UsageError(
            f"{point.value}, which is installed as the method '{name}', is no method of that name",
            "Let the entry point name a subclass of adaptify.methods.Method with this `name`.",
        )
    return register(found)


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="adaptify.methods")}
