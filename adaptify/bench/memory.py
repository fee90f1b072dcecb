"""The most memory that running a network takes, above what the process had before the network was there."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


class PeakMemory:
    """Bytes above those at the moment when this was made.

    On a CPU it is memory that is really there (resident), which Linux tells; on a GPU, what PyTorch has given
    out.

    Args:
        device: Whose memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = self._now()

    def of(self, run: Callable[[], object]) -> int | None:
        """The most while `run` runs, in bytes; None where the system does not tell."""
        if self._before is None:
            return None
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            run()
            torch.cuda.synchronize(self._device)
            return int(torch.cuda.max_memory_allocated(self._device)) - self._before
        _give_back()
        try:
            _RESET.write_text("5")  # the peak begins anew
        except OSError:
            return None
        run()
        peak = _field("VmHWM")
        return None if peak is None else max(peak - self._before, 0)

    def _now(self) -> int | None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return int(torch.cuda.memory_allocated(self._device))
        _give_back()
        return _field("VmRSS")


def _give_back() -> None:
    """Give memory that was freed back to the system, where the allocator would keep it."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _field(name: str) -> int | None:
    with suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0]) * 1024
    return None
