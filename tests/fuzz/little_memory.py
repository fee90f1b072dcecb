"""Running something where memory is short, so that what takes too much of it fails."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from adaptify.errors import AdaptifyError

SPARE = 1 << 30
"""Bytes of addresses beyond those that are in use already."""


def in_little_memory(work: Callable[[], object], seconds: float = 120.0) -> str:
    """Do something in a process that may take 1 GiB more; return "ErrorType: message", "" if it was done."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_limited, args=(work, theirs))
    process.start()
    theirs.close()
    said = str(ours.recv()) if ours.poll(seconds) else f"nothing within {seconds} s"
    process.kill()
    process.join()
    return said


def _limited(work: Callable[[], object], told: Connection) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, used + SPARE))
    try:
        work()
    except AdaptifyError as error:
        told.send(f"{type(error).__name__}: {error}")
    except BaseException as error:
        told.send(f"unexpected {type(error).__name__}: {error}")
    else:
        told.send("")
