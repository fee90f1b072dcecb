"""What a training run carries from one epoch to the next, and the files that it is kept in.

The order of images, their augmentation and torch's random numbers follow from the seed and the epoch, and the
learning rate from the step: they are in no file. Everything else is, so that a run that goes on after it was
killed ends with the same weights, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from adaptify.bounds import brief, parse_json, refuse_newer
from adaptify.errors import UsageError
from adaptify.files import atomic_write, write_tensors
from adaptify.parallel import group
from adaptify.progress import Progress
from adaptify.training.average import WeightAverage
from adaptify.training.history import EpochRow
from adaptify.training.objective import Objective, Stateful
from adaptify.version import VERSION

STATE_VERSION = 1
KEPT = 2
"""How many files are kept: if the newest is damaged, there is the one before."""

_FORMAT = "adaptify.training_state"


@dataclass
class TrainingState:
    """A training run between two epochs.

    Attributes:
        model: The network.
        optimizer: Of all that is trained.
        average: Of the weights of the network, where there is one.
        companion: What is trained beside the network, if anything is.
        objective: What is minimised; one that is `Stateful` has a part in the state.
        rows: The epochs so far.
        best: The best of them.
    """

    model: nn.Module
    optimizer: Optimizer
    average: WeightAverage | None
    companion: nn.Module | None
    objective: Objective
    rows: list[EpochRow] = field(default_factory=list)
    best: int | None = None

    @property
    def epoch(self) -> int:
        """The next epoch."""
        return len(self.rows)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state, where they live: what is done to them is done to the state."""
        return {**self._of_modules(), **self._of_optimizer()}

    def facts(self) -> dict[str, Any]:
        """The rest of the state, as JSON."""
        slots: dict[str, dict[str, Any]] = {
            str(index): {key: value for key, value in slot.items() if not isinstance(value, Tensor)}
            for index, slot in self.optimizer.state_dict()["state"].items()
        }
        return {
            "rows": [row.to_json() for row in self.rows],
            "best": self.best,
            "optimizer": slots,
            # Elementwise operations may round otherwise where memory is laid out otherwise.
            "strides": {name: value.stride() for name, value in self._of_optimizer().items()},
            "objective": self.objective.state() if isinstance(self.objective, Stateful) else None,
        }

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Become what `tensors` and `facts` were taken from.

        Raises:
            UsageError: That was a run of another network or with another optimizer.
        """
        own = self._of_modules()
        theirs = {name: value.shape for name, value in tensors.items() if not name.startswith("optimizer.")}
        if {name: value.shape for name, value in own.items()} != theirs:
            raise UsageError(
                "the state of the training is that of another network",
                "Start anew, without --resume; or use the version of adaptify that the run began with.",
            )
        for name, value in own.items():
            value.copy_(tensors[name])
        slots = {int(index): dict(slot) for index, slot in facts["optimizer"].items()}
        for name, stride in facts["strides"].items():
            _, index, key = name.split(".", 2)
            value = tensors[name]
            slots[int(index)][key] = torch.empty_strided(value.shape, stride, dtype=value.dtype).copy_(value)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        if isinstance(self.objective, Stateful):
            self.objective.restore(facts["objective"])
        self.rows = [EpochRow.from_json(row) for row in facts["rows"]]
        self.best = facts["best"]

    def _of_modules(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for prefix, module in (("model", self.model), ("companion", self.companion)):
            if module is not None:
                # Not the state dict: it lacks buffers that are not part of a checkpoint.
                named = (*module.named_parameters(), *module.named_buffers())
                found |= {f"{prefix}.{name}": value for name, value in named}
        if self.average is not None:
            found |= {f"average.{index}": value for index, value in enumerate(self.average.tensors)}
        return found

    def _of_optimizer(self) -> dict[str, Tensor]:
        return {
            f"optimizer.{index}.{key}": value
            for index, slot in self.optimizer.state_dict()["state"].items()
            for key, value in slot.items()
            if isinstance(value, Tensor)
        }


class _DamagedError(Exception):
    """A file that is not what was written."""


class States:
    """The newest states of a training run, one file for each of the last epochs.

    Each is a safetensors file with the facts and a checksum of everything in its metadata.

    Args:
        folder: Where they are; made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: TrainingState) -> None:
        """Write a state as it is after `state.epoch` epochs, and remove those that are too old.

        Raises:
            AdaptifyError: The file cannot be written.
        """
        # Safetensors refuses shared storage and any layout but the plain one.
        tensors = {
            name: torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
            for name, value in state.tensors().items()
        }
        facts = json.dumps(state.facts(), default=float)
        metadata = {
            "format": _FORMAT,
            "version": str(STATE_VERSION),
            "adaptify": VERSION,
            "facts": facts,
            "sha256": _checksum(facts, tensors),
        }
        with atomic_write(self.folder / f"epoch-{state.epoch:06d}.safetensors") as temporary:
            write_tensors(temporary, tensors, metadata)
        for path in self._newest_first()[KEPT:]:
            path.unlink()

    def restore(self, state: TrainingState, progress: Progress) -> bool:
        """Bring `state` to the newest state that is whole; files that are damaged are told of.

        Where several processes work together, the main one reads it for all.

        Returns:
            Whether there was one; otherwise `state` is as it was.

        Raises:
            UsageError: The state is from a newer version, or that of another network.
        """
        found = group.by_main(lambda: self._newest(progress))
        if found is not None:
            try:
                state.restore(*found)
            except UsageError as error:
                raise UsageError(f"{self.folder}: {error.message}", error.hint) from error
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
                raise UsageError(
                    f"the state of the training in {self.folder} is not what training writes: {brief(error)}",
                    "Start anew, without --resume.",
                ) from error
        return found is not None

    def _newest(self, progress: Progress) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        for path in self._newest_first():
            try:
                return _read(path)
            except _DamagedError as error:
                progress.note(f"{path} is damaged ({error}): training goes on from before it")
        return None

    def _newest_first(self) -> list[Path]:
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(path for path in found if re.fullmatch(r"epoch-\d+\.safetensors", path.name))[::-1]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise _DamagedError("it is no state of a training")
            refuse_newer(
                {**metadata, "version": int(metadata["version"])}, STATE_VERSION, path, what="state version"
            )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["sha256"] != _checksum(metadata["facts"], tensors):
            raise _DamagedError("its checksum is another one")
        return tensors, parse_json(metadata["facts"])
    except (MemoryError, UsageError, _DamagedError):
        raise
    except Exception as error:  # types and shapes that torch does not know end in errors of many kinds
        raise _DamagedError(brief(error)) from error


def _checksum(facts: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
