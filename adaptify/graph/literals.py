"""Sizes written in a graph, changed to what is left of the channels."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx


@dataclass(frozen=True)
class Call:
    """An operation and its arguments; the arguments may be nodes."""

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


Numbers = Callable[[fx.Node], Any]
"""Node -> the plain value it has in the new network (sizes), or the labels it yields."""


def resized(
    node: fx.Node, name: str, expected: Any, number: Numbers, lines: tuple[int, Tensor] | None
) -> Call | None:
    """Return the data-moving operation of `node` with other sizes, None where that is not known.

    Args:
        node: The operation as it was.
        name: Its name ("view", "chunk", ...).
        expected: Labels that it must yield now: a tensor, or a tuple of tensors.
        number: What arguments are now.
        lines: The channel axis of its input, and which positions on it stay (bool).
    """
    if name in ("view", "reshape", "expand"):
        return Call("call_method", name, (node.args[0], *_sizes(_flat(node.args[1:]), expected, number)), {})
    if name in ("unflatten", "Unflatten"):
        return _unflatten(node, expected)
    if name in ("chunk", "split"):
        return _split(node, expected)
    if lines is None:
        return None
    if name == "getitem" and isinstance(expected, Tensor):
        return _index(node, *lines)
    if name == "narrow" and not node.kwargs:
        return _narrow(node, *lines)
    return None


def out_of_place(call: Call) -> Call:
    """Return `call` without writing over its first operand, which is a constant now."""
    target = call.target
    if isinstance(target, str) and call.op == "call_method":
        target = target.removesuffix("_")
    elif target in _OUT_OF_PLACE:
        target = _OUT_OF_PLACE[target]
    return Call(call.op, target, call.args, call.kwargs)


_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def padded(node: fx.Node, axis: int, before: int, after: int) -> Call:
    """Return the padding of `node` with other amounts on `axis`."""
    amounts = list(node.args[1] if len(node.args) > 1 else node.kwargs["pad"])  # type: ignore[arg-type]
    start = 2 * (len(node.meta["shape"]) - 1 - axis)
    amounts[start : start + 2] = [before, after]
    kwargs = {key: value for key, value in node.kwargs.items() if key not in ("pad", "input")}
    source = node.args[0] if node.args else node.kwargs["input"]
    return Call(node.op, node.target, (source, amounts, *node.args[2:]), kwargs)


def _flat(sizes: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes


def _sizes(sizes: tuple[Any, ...], expected: Tensor, number: Numbers) -> tuple[Any, ...]:
    """`sizes`, with a literal wherever the number is not the one of `expected`."""
    if len(sizes) != expected.dim():
        # The whole shape of another tensor: all of it is written down, but for the batch.
        return (-1, *expected.shape[1:])
    return tuple(
        size if (number(size) if isinstance(size, fx.Node) else size) in (-1, wanted) else wanted
        for size, wanted in zip(sizes, expected.shape, strict=True)
    )


def _unflatten(node: fx.Node, expected: Tensor) -> Call | None:
    if node.op == "call_module" or node.kwargs or len(node.args) != 3:
        return Call("call_method", "reshape", (node.args[0], -1, *expected.shape[1:]), {})
    dim, sizes = int(node.args[1]), node.args[2]  # type: ignore[arg-type]
    dim = dim % (expected.dim() - len(sizes) + 1)  # type: ignore[arg-type]
    return Call(node.op, node.target, (node.args[0], dim, list(expected.shape[dim : dim + len(sizes)])), {})  # type: ignore[arg-type]


def _split(node: fx.Node, expected: Any) -> Call:
    """Pieces of any sizes: `chunk` becomes `split`."""
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    sizes = [piece.shape[dim] for piece in expected]
    return Call("call_function", torch.split, (node.args[0], sizes, dim), {})


def _index(node: fx.Node, axis: int, stays: Tensor) -> Call | None:
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if any(isinstance(item, (fx.Node, list)) for item in index):
        return None
    if Ellipsis in index:
        at = index.index(Ellipsis)
        missing = _dims(node) - sum(item is not None and item is not Ellipsis for item in index)
        index = (*index[:at], *(slice(None) for _ in range(missing)), *index[at + 1 :])
    where = [position for position, item in enumerate(index) if item is not None]
    if axis >= len(where):
        return None
    item: Any = index[where[axis]]
    if isinstance(item, slice) and any(
        isinstance(end, fx.Node) for end in (item.start, item.stop, item.step)
    ):
        return None
    chosen = _new_positions(torch.arange(len(stays))[item], stays)
    if isinstance(item, int):
        new: Any = int(chosen[0])
    elif len(chosen) and bool((chosen.diff() == 1).all()):
        new = slice(int(chosen[0]), int(chosen[-1]) + 1)
    else:
        return None
    return Call(
        node.op, node.target, (node.args[0], (*index[: where[axis]], new, *index[where[axis] + 1 :])), {}
    )


def _dims(node: fx.Node) -> int:
    """Number of axes of the tensor that `node` takes from."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return len(source.meta["shape"])


def _narrow(node: fx.Node, axis: int, stays: Tensor) -> Call | None:
    source, dim, start, length = node.args
    if not isinstance(start, int) or not isinstance(length, int) or dim != axis:
        return None
    chosen = _new_positions(torch.arange(start, start + length), stays)
    return Call(node.op, node.target, (source, dim, int(chosen[0]), len(chosen)), {})


def _new_positions(old: Tensor, stays: Tensor) -> Tensor:
    """Where those of the `old` positions that stay are among all that stay."""
    old = old.reshape(-1)
    return (stays.cumsum(0) - 1)[old[stays[old]]]
