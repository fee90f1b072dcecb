"""Graphs as modules that exporters can follow."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from adaptify.graph.program import compile_graph
from adaptify.graph.trace import Traced
from adaptify.runtime.fast import fold_batchnorm

_RESHAPES = ("view", "reshape", torch.reshape)


class Program(nn.Module):
    """A graph, and the modules that it names.

    Args:
        traced: Both.
    """

    def __init__(self, traced: Traced) -> None:
        super().__init__()
        self.network = traced.root
        self._run = compile_graph(traced.graph)

    def forward(self, *inputs: Tensor) -> Any:
        """Run the graph."""
        return self._run(self.network, *inputs)


def inference_form(traced: Traced, *, keep: Collection[str] = ()) -> Traced:
    """Return a network that computes the same in evaluation, in the form in which it is exported.

    BatchNorm is folded, and it runs on batches without any row. It has tensors of its own.

    Args:
        traced: The network; it is left as it is.
        keep: Names of nodes whose values must stay what they are (something is attached to them).
    """
    folded = fold_batchnorm(traced.with_own_tensors(), keep=keep)
    folded.root.requires_grad_(False)
    for node in folded.graph.nodes:
        _write_sizes(node)
    return replace(folded)


def share_equal(one: nn.Module, other: nn.Module) -> None:
    """Let `one` use the modules of `other` that have its names and tensors, which a file then holds once."""
    theirs = dict(other.named_modules())
    for name, module in list(one.named_modules()):
        same = theirs.get(name)
        if name and same is not None and type(same) is type(module) and _is_equal(module, same):
            one.set_submodule(name, same)


def _is_equal(one: nn.Module, other: nn.Module) -> bool:
    if next(one.children(), None) is not None:
        return False
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def _write_sizes(node: fx.Node) -> None:
    """Let a reshaping of samples say all sizes but the batch: without rows, nothing else would tell them."""
    if node.target not in _RESHAPES or not node.meta.get("batched") or len(node.args) < 2:
        return
    source, *sizes = node.args
    is_flat = not isinstance(sizes[0], (tuple, list))
    given = list(sizes if is_flat else sizes[0])  # type: ignore[arg-type]
    shape = node.meta["shape"]
    if len(given) != len(shape) or -1 not in given[1:]:
        return
    given = [given[0], *shape[1:]]
    node.args = (source, *given) if is_flat else (source, tuple(given))
