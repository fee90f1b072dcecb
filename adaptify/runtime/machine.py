"""What was measured on this machine, once, kept in a file of the user's cache folder.

A file that is missing, damaged or cannot be written costs time, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Generic, TypeVar

import torch

from adaptify.errors import AdaptifyError
from adaptify.files import write_text

T = TypeVar("T")
Self = TypeVar("Self", bound="MachineTable[Any]")

VERSION = 1
"""Of the files; another version is measured anew."""


class MachineTable(ABC, Generic[T]):
    """Measurements, each a dataclass of numbers, by what they are of.

    Use it as a context manager: what was measured is written at its end, also when it ends in an error.

    Attributes:
        file: Name of the file.
    """

    file: ClassVar[str]

    @staticmethod
    @abstractmethod
    def parse(value: Mapping[str, Any]) -> Any:
        """Make a measurement of its JSON; whatever this raises is a damaged file."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or cache_folder() / self.file
        self._costs: dict[str, T] = {}
        self._changed = False

    def __enter__(self: Self) -> Self:
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            if stored["version"] == VERSION:
                self._costs = {key: type(self).parse(cost) for key, cost in stored["costs"].items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._changed:
            costs: Mapping[str, Any] = self._costs
            content = {"version": VERSION, "costs": {key: asdict(cost) for key, cost in costs.items()}}
            with suppress(AdaptifyError):
                write_text(self._path, json.dumps(content, indent=1) + "\n")

    def look_up(self, key: str, measure: Callable[[], T]) -> T:
        """What is known under `key`, measured now if that is nothing."""
        if key not in self._costs:
            self._costs[key] = measure()
            self._changed = True
        return self._costs[key]


def cache_folder() -> Path:
    """Where measurements are kept: `ADAPTIFY_CACHE`, or `adaptify` in the user's cache folder."""
    chosen = os.environ.get("ADAPTIFY_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen or Path(home) / "adaptify")


def cost_key(description: str, device: torch.device) -> str:
    """A key for something on this machine: another processor, PyTorch or number of threads is another key."""
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    else:
        machine = (
            f"{_processor()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
        )
    text = "\n".join((torch.__version__, machine, description))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
