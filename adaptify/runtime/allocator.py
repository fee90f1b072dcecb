"""Let glibc keep the memory that a network's activations are written to, step after step.

By default glibc maps every large block afresh and gives it back to the system when it is freed, so
each forward pass pays for its page faults again; on a CPU that can be a third of the time. Raising
two thresholds makes freed blocks stay with the process. The price is memory: what was needed
once is kept until the process ends, so this is for programs to decide, not for a library.

The same can be had from outside with `MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_`;
where they (or `GLIBC_TUNABLES`) are set, or where there is no glibc, nothing is changed.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Parameter numbers of mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_KEEP_BELOW = 1 << 30  # bytes: larger blocks than the activations of one step are still given back
_NEVER_TRIM = (1 << 31) - 1  # bytes: the largest value that mallopt takes

_changed = False


def keep_freed_memory() -> bool:
    """Make the process keep freed blocks of up to 1 GiB; call it before the first large allocation.

    Returns:
        Whether the setting was made: false without glibc, or where the user has set their own.
    """
    global _changed
    if _glibc_version() is None or _set_from_outside():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    _changed = bool(mallopt(_M_MMAP_THRESHOLD, _KEEP_BELOW) and mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM))
    return _changed


def describe_allocator() -> str:
    """Say in a few words which allocator is at work and how it is set, for benchmarks and bug reports."""
    preloaded = os.path.basename(os.environ.get("LD_PRELOAD", ""))
    if preloaded:
        return f"preloaded: {preloaded}"
    version = _glibc_version()
    if version is None:
        return "system default"
    outside = _set_from_outside()
    if outside:
        return f"{version}, {', '.join(outside)}"
    return f"{version}, keeps freed blocks below 1 GiB" if _changed else f"{version}, default"


def _glibc_version() -> str | None:
    """Return for example "glibc 2.36", or `None` on other C libraries and systems."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):
        return None


def _set_from_outside() -> tuple[str, ...]:
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    return tuple(f"{name}={os.environ[name]}" for name in names if os.environ.get(name))
