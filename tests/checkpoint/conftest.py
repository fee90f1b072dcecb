"""Checkpoints for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adaptify.checkpoint import Checkpoint
from adaptify.models import resolve


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors are slower with several threads, much slower on a machine that is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def weightless() -> Callable[..., Checkpoint]:
    """A function that makes the checkpoint of an architecture without memory for its weights."""

    def make(name: str, kwargs: Mapping[str, object] | None = None, *, file: str = "x.pth") -> Checkpoint:
        tensors: dict[str, Tensor] = {}
        for key, spec in resolve(name, kwargs or {}).signature().items():
            dtype = torch.int64 if spec.optional else torch.float32
            tensors[key] = torch.zeros((), dtype=dtype).expand(spec.shape)
        return Checkpoint(Path(file), tensors, sha256="")

    return make
