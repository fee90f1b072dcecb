"""How large a network may be that a file describes: it is refused before there is memory for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from adaptify.bounds import MOST_CHANNELS, MOST_NUMBER, MOST_SIDE, check_depth
from adaptify.errors import ModelError

if TYPE_CHECKING:
    from adaptify.models.registry import Architecture

# What makes tensors of any size out of numbers.
_FACTORIES = frozenset(
    {
        torch.arange,
        torch.empty,
        torch.eye,
        torch.full,
        torch.linspace,
        torch.logspace,
        torch.normal,
        torch.ones,
        torch.rand,
        torch.randint,
        torch.randn,
        torch.randperm,
        torch.zeros,
    }
)
_REPEATS = frozenset(
    {Tensor.repeat, Tensor.tile, torch.tile, Tensor.repeat_interleave, torch.repeat_interleave}
)
_SMALL = 1 << 12
_HINT = "The file is damaged, or was made to use up the memory of whoever opens it."


class Allowance(TorchFunctionMode):
    """Context in which tensors can be made up to a number of values, all together.

    How large something will be is found out on the meta device, before it is made.

    Args:
        numbers: Values that may be made. What is computed from them may have no more, at a time.
        tensors: How often something may be made; None for any number.

    >>> with Allowance(1000):
    ...     layer = torch.nn.Linear(10, 10)
    """

    def __init__(self, numbers: int, tensors: int | None = None) -> None:
        super().__init__()
        self._most = numbers
        self._numbers = numbers
        self._tensors = tensors

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        made = func in _FACTORIES
        if made or func in _REPEATS or any(map(_is_large, args)):
            size = _size(func, args, options)
            if made:
                self._numbers -= size
                if self._tensors is not None:
                    self._tensors -= 1
            if self._numbers < 0 or size > self._most or (self._tensors or 0) < 0:
                raise ModelError(
                    "the network that the plan describes is far larger than the tensors in the file", _HINT
                )
        return func(*args, **options)


def check_arguments(architecture: Architecture) -> None:
    """Make sure that the arguments and the images of an architecture are of a size that networks have.

    Raises:
        ModelError: They are not.
    """
    spec = architecture.input
    sides = (spec.height, spec.width, spec.resize or 1)
    if max(sides) > MOST_SIDE or spec.channels > MOST_CHANNELS:
        raise ModelError(
            f"the plan describes images of {spec.channels}x{spec.height}x{spec.width}, of side {spec.resize}",
            f"There are networks for at most {MOST_SIDE} pixels a side, and {MOST_CHANNELS} channels.",
        )
    try:
        check_depth(dict(architecture.kwargs))
    except ValueError as error:
        raise ModelError(f"the arguments of {architecture.name}: {error}", _HINT) from error
    for number in _numbers_in(architecture.kwargs):
        if abs(number) > MOST_NUMBER:
            raise ModelError(
                f"the plan builds {architecture.name} with the number {number}",
                f"{_HINT} No architecture needs numbers above {MOST_NUMBER}.",
            )


def _numbers_in(value: Any) -> list[int]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in _numbers_in(item)]
    return [value] if isinstance(value, int) else []


def _is_large(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_meta and value.numel() > _SMALL


def _size(func: Callable[..., Any], args: Sequence[Any], options: dict[str, Any]) -> int:
    """Values of what `func` would return; 0 where that cannot be told without doing it."""
    moved = [value.to("meta") if isinstance(value, Tensor) else value for value in args]
    device = {"device": "meta"} if func in _FACTORIES else {}
    try:
        result = func(*moved, **{**options, **device})
    except Exception:
        return 0
    return result.numel() if isinstance(result, Tensor) else 0
