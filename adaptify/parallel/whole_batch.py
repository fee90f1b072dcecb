"""A forward pass on some rows of a batch, in which what looks at the whole batch sees the whole batch.

Almost everything in a network treats the samples of a batch one by one. What does not is found here where it
is called, whoever calls it: BatchNorm in training, which takes its statistics from all rows; and random
numbers for each row (gates, dropout, stochastic depth), which are drawn for all rows of all processes, as one
process would, and of which the own ones are kept.

Notation: B rows of this process, P processes, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from adaptify.parallel import group


class WholeBatch(TorchFunctionMode):
    """Calls in this mode see the batch of all processes, which are in it at the same time.

    Args:
        rows: B, the same for all processes.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self._rows = rows

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `func`, or what stands in for it."""
        stand_in = _STAND_INS.get(func)
        if stand_in is None:
            return func(*args, **(kwargs or {}))
        return stand_in(func, self._rows, *args, **(kwargs or {}))


def _batch_norm(
    function: Callable[..., Tensor],
    rows: int,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm`, with the statistics of all processes in training."""
    if not training:
        return function(input, running_mean, running_var, weight, bias, training, momentum, eps)
    count, mean, var = _statistics(input)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((var * (count / (count - 1))).to(running_var), momentum)
    normalised: Tensor = _Normalise.apply(input, weight, bias, mean, var, count, eps)
    return normalised


@torch.no_grad()
def _statistics(input: Tensor) -> tuple[float, Tensor, Tensor]:
    """How many values each channel has in all processes, their mean (C,) and their biased variance (C,)."""
    values = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    mean, var = torch.ops.aten.batch_norm_update_stats(values, None, None, 0.0)
    parts = group.gathered(torch.stack([mean, var]))
    mean = parts[:, 0].mean(0)
    # Not from the squares: where the mean is large, they have no digits left for the variance.
    var = (parts[:, 1] + (parts[:, 0] - mean).square()).mean(0)
    return float(input.numel() // input.shape[1] * group.size()), mean, var


class _Normalise(torch.autograd.Function):
    """BatchNorm with given statistics, which depend on the inputs of all processes."""

    @staticmethod
    def forward(
        context: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: float,
        eps: float,
    ) -> Tensor:
        context.save_for_backward(input, weight, mean, (var + eps).rsqrt())
        context.count, context.eps, context.has_bias = count, eps, bias is not None
        return F.batch_norm(input, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, scale = context.saved_tensors
        # What it would be if these were all rows, and what the others change in it: linear in the input.
        slope, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient,
            input,
            torch.ones_like(mean) if weight is None else weight,
            None,
            None,
            mean,
            scale,
            True,
            context.eps,
            [True, True, True],
        )
        count = context.count
        own = torch.stack([of_weight, of_bias]).to(mean)
        differ = own * (group.size() / count) - group.total(own) / count
        factor = scale if weight is None else scale * weight.to(scale)
        tilt = factor * differ[0] * scale
        shift = factor * differ[1] - tilt * mean
        shape = [1, -1, *[1] * (input.dim() - 2)]
        if slope.dtype == tilt.dtype:
            slope = slope.addcmul_(input, tilt.view(shape)).add_(shift.view(shape))
        else:
            slope = slope + (input * tilt.view(shape) + shift.view(shape)).to(slope)
        return (
            slope,
            of_weight if weight is not None else None,
            of_bias if context.has_bias else None,
            *[None] * 4,
        )


def _drawn_like(function: Callable[..., Tensor], rows: int, input: Tensor, **options: Any) -> Tensor:
    """`torch.rand_like`, `torch.randn_like`."""
    if not _is_by_row(input, rows):
        return function(input, **options)
    return _own(function(_whole_like(input), **options))


def _bernoulli(
    function: Callable[..., Tensor], rows: int, input: Tensor, *args: Any, **options: Any
) -> Tensor:
    """`Tensor.bernoulli_`, which stochastic depth draws with."""
    if not _is_by_row(input, rows):
        return function(input, *args, **options)
    return input.copy_(_own(function(_whole_like(input), *args, **options)))


def _dropout(
    function: Callable[..., Tensor],
    rows: int,
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Tensor:
    """`F.dropout` and its relatives that drop whole channels."""
    if not training or not _is_by_row(input, rows):
        return function(input, p, training, inplace)
    factors = _own(function(_whole_like(input).fill_(1), p, True))
    return input.mul_(factors) if inplace else input * factors


def _is_by_row(input: Tensor, rows: int) -> bool:
    """Whether a tensor has a part for each row of the batch. Gates that look at nothing have one axis."""
    return input.dim() > 1 and len(input) % rows == 0


def _whole_like(own: Tensor) -> Tensor:
    """An empty tensor for the rows of all processes, whose memory is laid out like that of `own`."""
    shape = (len(own) * group.size(), *own.shape[1:])
    strides = own.stride()
    order = sorted(range(own.dim()), key=lambda axis: -strides[axis])
    blank = torch.empty([shape[axis] for axis in order], dtype=own.dtype, device=own.device)
    return blank.permute([order.index(axis) for axis in range(own.dim())])


def _own(whole: Tensor) -> Tensor:
    return whole[group.own_rows(0, len(whole))]


_STAND_INS: Mapping[Callable[..., Any], Callable[..., Any]] = MappingProxyType(
    {
        F.batch_norm: _batch_norm,
        F.dropout: _dropout,
        F.dropout1d: _dropout,
        F.dropout2d: _dropout,
        F.dropout3d: _dropout,
        torch.rand_like: _drawn_like,
        torch.randn_like: _drawn_like,
        Tensor.bernoulli_: _bernoulli,
    }
)
