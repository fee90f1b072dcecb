"""What a launcher (`torchrun`, `accelerate launch`) tells this process, found without torch."""

from __future__ import annotations

import os


def count() -> int:
    """How many processes were launched together; 1 without a launcher."""
    return _told("WORLD_SIZE", 1) if "RANK" in os.environ else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return _told("RANK", 0) if count() > 1 else 0


def local_count() -> int:
    """How many of them are on this machine."""
    return _told("LOCAL_WORLD_SIZE", count()) if count() > 1 else 1


def local_rank() -> int:
    """Which of those on this machine this is, from 0: the number of its GPU."""
    return _told("LOCAL_RANK", rank()) if count() > 1 else 0


def _told(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default
