"""Fixtures for the tests of every room."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

pytest_plugins = ["families", "trained", "stage"]

ROOT = Path(__file__).resolve().parents[1]

# Small networks are slower with several threads, and much slower on a machine that is busy.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is measured in tests stays out of the user's cache."""
    os.environ["ADAPTIFY_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """A folder `shared` beside the repository with real checkpoints and images; skips where there is none."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("there is no folder with real checkpoints and images beside the repository")
    return folder
