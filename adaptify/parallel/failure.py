"""One process that fails ends the work of all, and all can say why."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist

from adaptify.errors import AdaptifyError

_KEY = "adaptify/failed/{}"
_MOMENT, _PATIENCE = 0.05, 1.0  # seconds


class PeerError(AdaptifyError):
    """Another process failed, or is gone."""


@contextmanager
def talking() -> Iterator[None]:
    """Where an exchange with other processes fails, say what became of them.

    Raises:
        PeerError: One of them failed, is gone, or keeps the others waiting.
    """
    try:
        yield
    except RuntimeError as error:
        raise _explained() from error


def publish(error: Exception) -> None:
    """Tell the other processes why this one ends; does nothing where that cannot be told any more."""
    if isinstance(error, PeerError):
        return
    code = error.exit_code if isinstance(error, AdaptifyError) else 1
    told = {"message": _message(error), "code": code}
    with suppress(RuntimeError, ValueError):
        _store().set(_KEY.format(dist.get_rank()), json.dumps(told))
    if dist.get_rank() == 0:
        # The notes may go with this process: others that fail alike are to see that they need not speak.
        others = range(1, dist.get_world_size())
        _until(lambda: all(_failure_of(other) is not None for other in others), _PATIENCE)


def main_says(error: Exception) -> bool:
    """Whether the main process fails, by now or in a moment, for the same reason as this one."""
    _until(lambda: _failure_of(0) is not None, 2 * _PATIENCE)
    found = _failure_of(0)
    return found is not None and bool(found["message"] == _message(error))


def _until(is_so: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(_MOMENT)


def _explained() -> PeerError:
    for other in range(dist.get_world_size()) if dist.is_initialized() else ():
        found = _failure_of(other) if other != dist.get_rank() else None
        if found is not None:
            failed = PeerError(
                f"process {other} of {dist.get_world_size()} failed: {found['message'].splitlines()[0]}",
                "What it says above, or in its own log, tells more.",
            )
            failed.exit_code = found["code"]
            return failed
    return PeerError(
        "another process of this run is gone, or does not answer",
        "Look for what ended it: the system, for want of memory, or another machine.",
    )


def _failure_of(rank: int) -> dict[str, Any] | None:
    try:
        store = _store()
        key = _KEY.format(rank)
        return dict(json.loads(store.get(key))) if store.check([key]) else None
    except (RuntimeError, ValueError):
        return None  # the process that kept the notes is gone, too


def _message(error: Exception) -> str:
    return error.message if isinstance(error, AdaptifyError) else f"{type(error).__name__}: {error}"


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()
