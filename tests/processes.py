"""Programs in processes of their own, which import what this one does."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

CALL = "import sys; from adaptify.cli.main import main; sys.exit(main())"


def environment() -> dict[str, str]:
    """The environment of a program that imports what this process does."""
    paths = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}


def start(*words: str, **options: Any) -> subprocess.Popen[str]:
    """Start a command of adaptify, with pipes to read what it says."""
    return subprocess.Popen(
        [sys.executable, "-c", CALL, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        **options,
    )
