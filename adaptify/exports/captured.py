"""A portable network as `torch.export` records it: what both .pt2 and ONNX files are made of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from adaptify.errors import ModelError
from adaptify.exports.portable import Portable


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
    plainly = nullcontext() if portable.one_by_one else _Plainly()  # branches are recorded in another way
    with torch.no_grad(), without_fused_attention(), quiet(), plainly:
        try:
            return torch.export.export(portable.module, (images,), dynamic_shapes=(sizes,), strict=False)
        except Exception as error:
            raise ModelError(
                f"PyTorch cannot record this network: {_reason(error)}",
                "Prune it, and export what comes of that (adaptify prune RUN), or run it with adaptify.",
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


class _Plainly(TorchFunctionMode):
    """Writes operations that ask whether a batch is empty as others: no recording can tell."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, or what stands for it."""
        return _INSTEAD.get(func, func)(*args, **(kwargs or {}))


def _roll(x: Tensor, shifts: int | Sequence[int], dims: int | Sequence[int]) -> Tensor:
    """`torch.roll` along axes, as pieces in another order."""
    pairs = zip(
        (shifts,) if isinstance(shifts, int) else shifts,
        (dims,) if isinstance(dims, int) else dims,
        strict=True,
    )
    for shift, axis in pairs:
        size = x.shape[axis]
        place = -shift % size
        if place:
            x = torch.cat([x.narrow(axis, place, size - place), x.narrow(axis, 0, place)], axis)
    return x


def _average(x: Tensor, output_size: Any) -> Tensor:
    """`adaptive_avg_pool2d`; the average of everything as such, whatever the layout of `x`."""
    if output_size in (1, (1, 1), [1, 1]):
        return x.mean((-2, -1), keepdim=True)
    return functional.adaptive_avg_pool2d(x, output_size)


_INSTEAD: Mapping[Any, Callable[..., Any]] = {
    torch.roll: _roll,
    functional.adaptive_avg_pool2d: _average,
}


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
