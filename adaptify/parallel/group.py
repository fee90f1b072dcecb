"""The processes that work together, and what they tell each other.

All of them run the same program on the same settings, and take every decision alike. They differ in which
images they look at, and in that only the main one writes and speaks. Outside of `processes`, and in it where
there is only one process, every function here gives back what it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from adaptify.errors import UsageError
from adaptify.parallel import launch
from adaptify.parallel.failure import publish, talking

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others before it gives up."""

T = TypeVar("T")
P = ParamSpec("P")
_active = False


@contextmanager
def processes() -> Iterator[None]:
    """Let the processes that were launched together work together while the block lasts.

    Collectives go through gloo for tensors on the CPU, and through NCCL for those on GPUs. A process that
    fails tells the others why: they fail at their next exchange with it.

    Raises:
        UsageError: There are several, and accelerate is not installed.
    """
    global _active
    if _active or launch.count() == 1:
        yield
        return
    _start()
    _active = True
    try:
        yield
        wait()  # the one that hosts the rendezvous must not leave first
    except Exception as error:
        publish(error)
        raise
    else:
        dist.destroy_process_group()
    finally:
        _active = False


def _start() -> None:
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise UsageError(
            f"{launch.count()} processes were launched, and accelerate is not installed",
            "Install it: pip install adaptify[distributed], or launch one process.",
        ) from error
    has_gpus = torch.cuda.device_count() >= launch.local_count()
    backend = {"backend": "cpu:gloo,cuda:nccl"} if has_gpus else {}
    PartialState._reset_state()  # of a group that has ended
    PartialState(cpu=not has_gpus, timeout=PATIENCE, **backend)


def size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if _active else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if _active else 0


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def check_batch(images: int, setting: str) -> None:
    """Make sure that a batch can be shared.

    Args:
        images: Images in a batch of all processes.
        setting: What the user calls it.

    Raises:
        UsageError: The processes would get batches of different sizes.
    """
    if images % size():
        more = -(-images // size()) * size()
        raise UsageError(
            f"{setting}={images} cannot be shared by {size()} processes",
            f"It counts the images of all processes: choose a multiple of {size()}, as {more}.",
        )


def own_rows(index: int, rows: int) -> slice:
    """The rows of a batch that are this process's: one of as many equal parts as there are processes.

    Args:
        index: Number of the batch.
        rows: How many it has, a multiple of `size()`.
    """
    part = rows // size()
    return slice(rank() * part, (rank() + 1) * part)


def own_turn(index: int, rows: int) -> slice:
    """All rows of a batch if it is this process's turn, else none."""
    return slice(0, rows if index % size() == rank() else 0)


def wait() -> None:
    """Wait until all processes are here."""
    if size() > 1:
        with talking():
            dist.barrier()


class Turns:
    """`own_turn` over several passes in a row: whoever has the last batch of one is not first in the next."""

    def __init__(self) -> None:
        self._seen = 0

    def __call__(self, index: int, rows: int) -> slice:
        """All rows of the next batch if it is this process's turn, else none."""
        self._seen += 1
        return own_turn(self._seen - 1, rows)


def gather_rows(own: Tensor) -> Tensor:
    """The rows (B, ...) of all processes, which have as many each: (size() * B, ...), in the order of ranks.

    A gradient that every process has alike goes back to the rows of each, times `size()`: so that
    `average` of the gradients of parameters gives what one process with all rows would have.
    """
    if size() == 1:
        return own
    gathered: Tensor = _GatherRows.apply(own)
    return gathered


def gathered(own: Tensor) -> Tensor:
    """The tensors of all processes, of one shape (...) and type: (size(), ...), without gradients."""
    own = own.detach().contiguous()
    if size() == 1:
        return own.unsqueeze(0)
    # As bytes: not every backend knows every type.
    raw = own.view(-1).view(torch.uint8)
    parts = [torch.empty_like(raw) for _ in range(size())]
    with talking():
        dist.all_gather(parts, raw)
    return torch.cat(parts).view(own.dtype).view(size(), *own.shape)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, own: Tensor) -> Tensor:
        context.rows = len(own)
        return gathered(own).flatten(0, 1)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        first = rank() * context.rows
        return gradient[first : first + context.rows] * size()


@torch.no_grad()
def total(own: Tensor) -> Tensor:
    """The sum over all processes, without a gradient."""
    if size() == 1:
        return own
    summed = own.clone()
    with talking():
        dist.all_reduce(summed)
    return summed


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, which have the same ones in the same order."""
    if size() == 1:
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for alike in by_type.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        with talking():
            dist.all_reduce(flat)
        flat /= size()
        for tensor, part in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def from_main(value: T) -> T:
    """What the main process gives, for all; what others give is not looked at."""
    if size() == 1:
        return value
    box = [value]
    with talking():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def by_main(work: Callable[[], T]) -> T:
    """Let the main process do something, and give its result to all."""
    return from_main(work() if is_main() else None)  # type: ignore[return-value]


def alone(work: Callable[P, T]) -> Callable[P, T]:
    """Decorator: what is timed is done by the main process while the others wait for its result."""

    @wraps(work)
    def timed(*args: P.args, **kwargs: P.kwargs) -> T:
        return by_main(partial(work, *args, **kwargs))

    return timed


@torch.no_grad()
def adopt_from_main(tensors: Sequence[Tensor]) -> None:
    """Give tensors the values that they have in the main process."""
    for tensor in tensors if size() > 1 else ():
        values = tensor.contiguous()
        with talking():
            dist.broadcast(values, src=0)
        tensor.copy_(values)


def in_turns(own: Iterable[T]) -> Iterator[T]:
    """What all processes find, one after the other: with `own_turn`, in the order of the batches.

    Every process gets everything. Processes go through their parts in step, one batch each at a time.
    """
    if size() == 1:
        yield from own
        return
    parts = iter(own)
    while True:
        found = [next(parts, None)]
        everyone: list[Any] = [None] * size()
        with talking():
            dist.all_gather_object(everyone, found)
        for (item,) in everyone:
            if item is not None:
                yield item
        if everyone[0][0] is None:  # the first is never behind the others
            return
