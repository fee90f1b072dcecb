"""Damaged files of every kind end in an error that names them, or are read; nothing else happens."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from .targets import TARGETS, attack

# Artifacts are traced and run: of them, fewer.
FEW = {"artifact": 60, "checkpoint": 100, "recipe": 100, "report": 60}
MANY = {"artifact": 1_000}


def attacked(kind: str, random: Random) -> str:
    """Damage a file and let it be read, in a folder of its own; return what is wrong with how that went."""
    with tempfile.TemporaryDirectory() as folder:
        before = os.getcwd()
        os.chdir(folder)
        try:
            return attack(TARGETS[kind], TARGETS[kind].damaged(random), Path(folder))
        finally:
            os.chdir(before)


def quiet(examples: int) -> settings:
    # A seed is not made clearer by a smaller one: what fails is told as it was found.
    return settings(
        phases=[Phase.generate],
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("kind", TARGETS)
def test_sound_files_are_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for data in TARGETS[kind].samples():
        assert attack(TARGETS[kind], data, tmp_path) == ""
        TARGETS[kind].read(tmp_path / TARGETS[kind].name)


@pytest.mark.parametrize("kind", TARGETS)
def test_damaged_files_are_named(kind: str) -> None:
    @quiet(FEW.get(kind, 300))
    @given(seed=st.integers(0, 2**32 - 1))
    def check(seed: int) -> None:
        assert attacked(kind, Random(seed)) == ""

    check()


@pytest.mark.slow
@pytest.mark.parametrize("kind", TARGETS)
def test_many_damaged_files_are_named(kind: str) -> None:
    @quiet(MANY.get(kind, 4_000))
    @given(seed=st.integers(2**32, 2**40))
    def check(seed: int) -> None:
        assert attacked(kind, Random(seed)) == ""

    check()
