"""Building a network without the cost of its weights.

Under `torch.device("meta")` everything a constructor makes loses its values, and constructors that
compute with small tensors (`torch.arange(...).tolist()` for widths or drop rates) fail. Here only
`torch.empty` is moved to the meta device: that is where layers take the memory of their parameters,
to be filled afterwards. All that has values from the start (arange, linspace, zeros) stays real, so
indices and constant buffers of the network are right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Filling a tensor without memory does nothing, at the price of most of the time of a construction.
_FILLS = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.zero_, Tensor.fill_})


class ParametersOnMeta(TorchFunctionMode):
    """Context in which layers are built with parameters on the meta device.

    >>> with ParametersOnMeta():
    ...     layer = nn.Linear(100_000, 100_000)
    >>> layer.weight.device.type
    'meta'
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        if func is torch.empty and options.get("device") is None:
            options = {**options, "device": "meta"}
        elif func in _FILLS and args[0].is_meta:
            return args[0]
        return func(*args, **options)


def has_meta(module: nn.Module) -> bool:
    """Whether any parameter, buffer or tensor attribute of `module` has no values."""
    return any(
        value.is_meta
        for part in module.modules()
        for held in (*part._parameters.values(), *part._buffers.values(), *vars(part).values())
        for value in (held if isinstance(held, list | tuple) else [held])
        if isinstance(value, Tensor)
    )
