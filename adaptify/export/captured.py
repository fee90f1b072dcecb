"""A portable network as `torch.export` records it: what both .pt2 and ONNX files are made of."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.export import Dim, ExportedProgram

from adaptify.errors import ModelError
from adaptify.export.portable import Portable


def capture(
    portable: Portable, input_shape: tuple[int, int, int], batch: int | None = None
) -> ExportedProgram:
    """Record `portable` for images (N, C, H, W).

    Args:
        portable: The network.
        input_shape: (C, H, W).
        batch: N; None: any.

    Raises:
        ModelError: It cannot be recorded.
    """
    if portable.one_by_one:
        batch = 1
    # Exporters take 0 and 1 for sizes that never change.
    images = torch.zeros(batch or 3, *input_shape)
    sizes = None if batch is not None else {0: Dim("batch")}
    with torch.no_grad(), without_fused_attention(), quiet():
        try:
            return torch.export.export(portable.module, (images,), dynamic_shapes=(sizes,), strict=False)
        except Exception as error:
            raise ModelError(
                f"PyTorch cannot record this network: {_reason(error)}",
                "Prune it first, and export what comes of that: adaptify prune RUN."
                if batch is not None
                else "Try it for one batch size: --batch-size 1.",
            ) from error


@contextmanager
def without_fused_attention() -> Iterator[None]:
    """Let attention run as the operations that it is made of: the fused one is known to PyTorch alone."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what exporters tell of their own work to themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
