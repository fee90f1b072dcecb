"""Names for the parts of a run, told to whoever listens while they run; by default nobody does.

A run says what it is doing with `with span(NETWORK, 2): ...`. That costs a fraction of a microsecond where
nobody listens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Protocol

NETWORK = "network"
"""What the network without gates would do as well; the index is that of the piece."""

GATES = "gates"
"""Deciding: exit heads, networks of gates, holding scores against thresholds."""

ROWS = "rows"
"""Taking rows out of a batch, and putting them back."""


class Listener(Protocol):
    """Someone who wants to know what a run is doing."""

    def enter(self, part: str, index: int) -> None:
        """A part begins; it may be inside another."""

    def leave(self) -> None:
        """The part that began last is over."""


class _Span:
    __slots__ = ("_index", "_listener", "_part")

    def __init__(self, listener: Listener, part: str, index: int) -> None:
        self._listener, self._part, self._index = listener, part, index

    def __enter__(self) -> None:
        self._listener.enter(self._part, self._index)

    def __exit__(self, *error: object) -> None:
        self._listener.leave()


_listener: ContextVar[Listener | None] = ContextVar("adaptify_listener", default=None)
_SILENT = nullcontext()


def span(part: str, index: int = 0) -> AbstractContextManager[None]:
    """Return a context in which a run is at `part`."""
    listener = _listener.get()
    return _SILENT if listener is None else _Span(listener, part, index)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` about the runs in this context."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
