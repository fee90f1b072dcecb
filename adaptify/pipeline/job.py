"""What the last stages of a run work with."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from adaptify.data import Data
from adaptify.methods import FitContext
from adaptify.pipeline.folder import STATES, NewRun
from adaptify.pipeline.prepare import Network
from adaptify.progress import Progress
from adaptify.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """A run whose training is done.

    Attributes:
        recipe: Its settings.
        network: The network as it came.
        data: The images.
        run: The run folder in the making.
        device: Where to compute.
        progress: Told how far it is.
        started: When it began, by `time.perf_counter`.
    """

    recipe: Recipe
    network: Network
    data: Data
    run: NewRun
    device: torch.device
    progress: Progress
    started: float

    def seconds(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self.started


def fit_context(recipe: Recipe, device: torch.device, work: Path, progress: Progress) -> FitContext:
    """Where and how the method of a recipe trains, in the folder `work` of a run in the making."""
    return FitContext(
        device,
        recipe.run.batch_size,
        recipe.run.seed,
        scratch=work / "scratch",
        folder=work,
        progress=progress,
        states=work / STATES,
    )


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
