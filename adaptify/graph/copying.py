"""Copies of a module tree that share, or replace, its tensors."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from adaptify.errors import ModelError


def share_copy(model: nn.Module, convert: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> nn.Module:
    """Copy the module tree of `model`; each tensor becomes `convert(tensor)` (itself by default).

    Raises:
        ModelError: Something in the tree cannot be copied.
    """
    memo: dict[int, Any] = {}
    for tensor in _tensors(model):
        converted = convert(tensor)
        if isinstance(tensor, nn.Parameter) and not isinstance(converted, nn.Parameter):
            converted = nn.Parameter(converted, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = converted
    # Most of what modules hold are empty tables of hooks, which deepcopy takes apart one by one.
    memo.update((id(table), OrderedDict()) for table in _empty_tables(model))
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied: {error}",
            "Keep what cannot be copied (open files, locks, compiled code) out of the attributes of modules.",
        ) from error


def meta_copy(model: nn.Module) -> nn.Module:
    """Copy of `model` with its tensors on the meta device: shapes without memory or compute."""
    return share_copy(model, lambda tensor: torch.empty_like(tensor, device="meta"))


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
    # Tensors kept as plain attributes (position tables, constants) travel as well.
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def _empty_tables(model: nn.Module) -> Iterator[OrderedDict[Any, Any]]:
    for module in model.modules():
        for value in vars(module).values():
            if type(value) is OrderedDict and not value:
                yield value
