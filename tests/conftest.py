"""Fixtures for the tests of every room."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

pytest_plugins = ["families", "trained", "stage"]

ROOT = Path(__file__).resolve().parents[1]

# The same examples in every run; `--hypothesis-profile default` draws others.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# Small networks are slower with several threads, and much slower on a machine that is busy.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


class ByFileOrFamily(LoadScopeScheduling):
    """Which tests stay in one process: those of a file, or those over a family (it is built once, then)."""

    def _split_scope(self, nodeid: str) -> str:
        from families import FAMILIES  # a plugin: pytest has to import it first

        file, _, name = nodeid.partition("::")
        parameters = name.partition("[")[2].removesuffix("]").split("-")
        return next((parameter for parameter in parameters if parameter in FAMILIES), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFileOrFamily:
    return ByFileOrFamily(config, log)


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
