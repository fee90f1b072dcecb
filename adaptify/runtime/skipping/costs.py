"""What blocks take on this machine, measured once and remembered.

n rows of a block take `fixed + n * row` seconds, and to take a row out of the batch and put it back takes
`move` more. That is enough to tell which of the ways to run a block is the fastest.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from adaptify.errors import AdaptifyError
from adaptify.files import write_text
from adaptify.runtime.compaction import put_rows, take_rows

VERSION = 1
"""Of the file; another version is measured anew."""

_SIZES = (1, 2, 8)
_REPEATS = 5


@dataclass(frozen=True)
class BlockCost:
    """Seconds of a block: `fixed + n * row` for n rows, and `move` to take a row out and put it back."""

    fixed: float
    row: float
    move: float

    def run(self, rows: int, share: float = 1.0) -> float:
        """Seconds for `rows` rows of a program with this share of the block's MACs."""
        return self.fixed + rows * self.row * share


class CostTable:
    """Costs of blocks by what they are, kept in a file of the user's cache folder.

    Use it as a context manager: what was measured is written at its end. A file that is missing, damaged or
    cannot be written costs time, and nothing else.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or cache_file()
        self._costs: dict[str, BlockCost] = {}
        self._changed = False

    def __enter__(self) -> CostTable:
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            if stored["version"] == VERSION:
                self._costs = {key: _cost_from_json(cost) for key, cost in stored["costs"].items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._changed:
            content = {
                "version": VERSION,
                "costs": {key: asdict(cost) for key, cost in self._costs.items()},
            }
            with suppress(AdaptifyError):
                write_text(self._path, json.dumps(content, indent=1) + "\n")

    def look_up(self, key: str, measure: Callable[[], BlockCost]) -> BlockCost:
        """The cost under `key`, measured now if it is not known."""
        if key not in self._costs:
            self._costs[key] = measure()
            self._changed = True
        return self._costs[key]


def _cost_from_json(value: Mapping[str, float]) -> BlockCost:
    return BlockCost(**{name: float(number) for name, number in value.items()})


def cache_file() -> Path:
    """Where costs are kept: `block-costs.json` in `ADAPTIFY_CACHE`, or in the user's cache folder."""
    chosen = os.environ.get("ADAPTIFY_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen or Path(home) / "adaptify") / "block-costs.json"


def cost_key(description: str, device: torch.device) -> str:
    """A key for a block on this machine: another processor, PyTorch or number of threads is another key."""
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    else:
        machine = (
            f"{_processor()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
        )
    text = "\n".join((torch.__version__, machine, description))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@torch.inference_mode()
def measure_block(
    run: Callable[..., Tensor],
    shape: tuple[int, ...],
    memory_format: torch.memory_format,
    device: torch.device,
    beside: Callable[[Tensor], tuple[Tensor, ...]] = lambda x: (),
) -> BlockCost:
    """Measure a block for rows of `shape` (without the batch); takes about fifty times what a row takes.

    Args:
        run: The block.
        shape: Of a row of its first input.
        memory_format: That of maps.
        device: Where it runs.
        beside: Makes its other inputs of the first; that is not measured.
    """
    firsts = [_batch(size, shape, memory_format, device) for size in _SIZES]
    batches = [(x, *beside(x)) for x in firsts]
    seconds = [_median(partial(run, *batch), device) for batch in batches]
    row, fixed = np.polyfit(_SIZES, seconds, 1)
    row = max(float(row), seconds[-1] / _SIZES[-1] / 2)
    batch = batches[-1]
    half = torch.arange(0, _SIZES[-1], 2, device=device)

    def move() -> None:
        first, *_ = [take_rows(value, half) for value in batch]
        put_rows(batch[0], half, first)

    return BlockCost(max(float(fixed), 0.0), row, _median(move, device) / len(half))


def _batch(
    size: int, shape: tuple[int, ...], memory_format: torch.memory_format, device: torch.device
) -> Tensor:
    batch = torch.rand(size, *shape, device=device)
    return batch.contiguous(memory_format=memory_format) if batch.dim() == 4 else batch


def _median(run: Callable[[], object], device: torch.device) -> float:
    run()
    seconds = []
    for _ in range(_REPEATS):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    import platform

    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
