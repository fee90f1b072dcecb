"""Starts several processes that work together, as a launcher would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def environment(rank: int, count: int, port: int, **more: str) -> dict[str, str]:
    """What a launcher tells a process, on this machine."""
    told = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": 1,
    }
    path = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, "PYTHONPATH": path, **{name: str(value) for name, value in told.items()}, **more}


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def launch(
    *words: str | Path, count: int = 2, cwd: Path | None = None, extra: Mapping[str, str] | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """Run `python WORDS` in `count` processes that know of each other; wait for all."""
    port = free_port()
    running = [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=environment(rank, count, port, **(extra or {})),
        )
        for rank in range(count)
    ]
    try:
        said = [process.communicate(timeout=560) for process in running]
    finally:
        for process in running:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(running, said, strict=True)
    ]
