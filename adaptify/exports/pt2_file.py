"""`.pt2` files: programs of `torch.export`, which need PyTorch and nothing else."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptify.exports.captured import capture
from adaptify.exports.facts import KEY, dumps
from adaptify.exports.portable import Portable

Runner = Callable[[Tensor], tuple[Tensor, ...]]


def write_pt2(
    path: Path,
    portable: Portable,
    input_shape: tuple[int, int, int],
    facts: dict[str, Any],
    *,
    batch: int | None = None,
) -> None:
    """Write `portable` for images of `input_shape`, with the facts as an extra file.

    Raises:
        ModelError: It cannot be recorded.
        OSError: The file cannot be written.
    """
    program = capture(portable, input_shape, batch)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={f"{KEY}.json": dumps(facts)})
    path.write_bytes(buffer.getbuffer())


def open_pt2(path: Path) -> Runner:
    """Load a file for running: images (N, C, H, W) -> outputs."""
    buffer = io.BytesIO(path.read_bytes())
    module = torch.export.load(buffer).module()

    def run(images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(module(images))

    return run


def read_facts(path: Path) -> str:
    """The facts that the file holds, as JSON text."""
    extra = {f"{KEY}.json": ""}
    torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra)
    return extra[f"{KEY}.json"]
