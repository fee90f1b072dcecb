"""Graphs as modules that exporters can follow."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from adaptify.graph.program import compile_graph
from adaptify.graph.trace import Traced
from adaptify.runtime.fast import fold_batchnorm

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
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


def inference_form(traced: Traced, *, keep: Collection[str] = (), empty: bool = False) -> Traced:
    """Return a network that computes the same in evaluation, in the form in which it is exported.

    BatchNorm is folded. It has tensors of its own.

    Args:
        traced: The network; it is left as it is.
        keep: Names of nodes whose values must stay what they are (something is attached to them).
        empty: Whether it may be given batches without any row.
    """
    folded = fold_batchnorm(traced.with_own_tensors(), keep=keep)
    if empty:
        for_empty_batches(folded.root)
        for node in folded.graph.nodes:
            _write_sizes(node)
    folded.root.requires_grad_(False)
    return folded


class ScaleShift(nn.Module):
    """BatchNorm in evaluation, as a factor and a summand for each channel.

    Exporters follow it for batches that may be empty, which they do not for BatchNorm itself.

    Args:
        norm: The BatchNorm; its input is (N, C, ...).
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            factor = factor * norm.weight.detach().double()
        summand = -norm.running_mean.double() * factor
        if norm.bias is not None:
            summand = summand + norm.bias.detach().double()
        self.register_buffer("factor", factor.to(norm.running_mean))
        self.register_buffer("summand", summand.to(norm.running_mean))
        self.factor: Tensor
        self.summand: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, ...) to the same shape."""
        shape = (-1, *(1 for _ in x.shape[2:]))
        return x * self.factor.view(shape) + self.summand.view(shape)


def for_empty_batches(root: nn.Module) -> None:
    """Change what is left of BatchNorm in `root`, in place, so that exporters take batches without rows."""
    for module in root.modules():
        if isinstance(module, nn.Sequential):
            _fold_neighbours(module)
    for name, module in list(root.named_modules()):
        if isinstance(module, _NORMS) and module.track_running_stats and name:
            root.set_submodule(name, ScaleShift(module))


def _fold_neighbours(layers: nn.Sequential) -> None:
    for (_, layer), (name, norm) in itertools.pairwise(list(layers.named_children())):
        if type(layer) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
            fused = fuse_conv_bn_eval(layer.eval(), norm.eval())
            layer.weight, layer.bias = fused.weight, fused.bias
            layers.set_submodule(name, nn.Identity())


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
