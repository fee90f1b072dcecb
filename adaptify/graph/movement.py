"""Where channels can be taken out of values that were moved about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from adaptify.graph.labels import compact, varying_axes
from adaptify.graph.propagation import Propagation, mapped
from adaptify.graph.rules import run_move


@dataclass(frozen=True)
class Gather:
    """A chain of data movements, as one selection: result = source.index_select(axis, index)."""

    source: fx.Node
    axis: int
    index: Tensor


def whole_axis(classes: Tensor, frozen: Tensor) -> int | None:
    """Return the axis of a value along which channels can be taken out of it, None if nothing varies.

    Args:
        classes: Class of each position of the value.
        frozen: (classes,) bool.

    Raises:
        ValueError: Channels lie across axes in such a way that what remains would not be a tensor.
    """
    varying = varying_axes(classes)
    if len(varying) <= 1:
        return varying[0] if varying else None
    small = compact(classes)[0]
    for axis in varying:
        rows = small.movedim(axis, 0).flatten(1)
        if bool(((rows == rows[:, :1]).all(1) | frozen[rows].all(1)).all()):
            return axis
    raise ValueError(f"channels along axes {varying}")


class Movements:
    """The data movements of a network whose channels are known.

    Attributes:
        classes: Which labels are the same channel; what cannot be taken out of a value is frozen.
    """

    def __init__(self, propagation: Propagation) -> None:
        self.propagation = propagation
        self.classes = propagation.space.solve()
        self._gathers: dict[fx.Node, Gather | None] = {}
        scrambled = [node for node in propagation.values if not self._is_whole(node)]
        self._scrambled = set(scrambled)
        for node in scrambled:
            if not self._is_bridged(node):
                reason = f"{node.meta['name']}: {propagation.operation(node)} lays channels across axes"
                self.classes = self.classes.freeze(self.of(propagation.values[node]), reason)

    def of(self, labels: Tensor) -> Tensor:
        """Classes of `labels`, in the same shape; expanded axes stay expanded."""
        return self.classes.of[compact(labels)[0]].expand(labels.shape)

    def axis(self, labels: Tensor) -> int | None:
        """`whole_axis` of a value with these labels."""
        return whole_axis(self.of(labels), self.classes.frozen)

    def is_scrambled(self, node: fx.Node) -> bool:
        """Whether channels lie across the axes of this node's value, on the way to a selection."""
        return node in self._scrambled

    def gather(self, node: fx.Node) -> Gather | None:
        """Express the data movement that ends in `node` as one selection of channels, if it is one.

        The chain of moves is followed back to the last value with whole channels, and run on the
        number of every element: the answer holds for each of them, not for channels only.
        """
        if node not in self._gathers:
            self._gathers[node] = self._find_gather(node)
        return self._gathers[node]

    def _find_gather(self, node: fx.Node) -> Gather | None:
        values = self.propagation.values
        chain: list[fx.Node] = []
        source = node
        while not chain or source in self._scrambled or not isinstance(values[source], Tensor):
            if source not in self.propagation.moves or not isinstance(source.args[0], fx.Node):
                return None
            chain.append(source)
            source = source.args[0]
        axis = self.axis(values[source])
        if axis is None or axis != self.axis(values[node]):
            return None
        numbers = torch.arange(values[source].numel(), dtype=torch.int32).view(values[source].shape)
        found: dict[fx.Node, Any] = {source: numbers}
        for step in reversed(chain):
            found[step] = self._replay(step, found)
        before, after = numbers.movedim(axis, -1), found[node].movedim(axis, -1)
        if before.shape[:-1] != after.shape[:-1]:
            return None
        first = before.reshape(-1, before.shape[-1])[0].contiguous()
        index = torch.searchsorted(first, after.reshape(-1, after.shape[-1])[0].contiguous())
        index = index.clamp(max=len(first) - 1)
        return Gather(source, axis, index) if torch.equal(before[..., index], after) else None

    def _replay(self, step: fx.Node, found: Mapping[fx.Node, Any]) -> Any:
        def value(node: fx.Node) -> Any:
            if node in found:
                return found[node]
            if node.op == "get_attr":
                return self.propagation.root.get_buffer(str(node.target)).cpu()
            return self.propagation.values[node]

        args, kwargs = mapped(step.args, step.kwargs, value)
        if not isinstance(args[0], Tensor):
            return args[0][args[1]]
        return run_move(self.propagation.root, step, *args, **kwargs)

    def _is_whole(self, node: fx.Node) -> bool:
        value = self.propagation.values[node]
        if isinstance(value, Tensor):
            try:
                self.axis(value)
            except ValueError:
                return False
        return True

    def _is_bridged(self, node: fx.Node) -> bool:
        """Whether everything that is made from the scrambled `node` ends in selections."""
        if node not in self.propagation.moves:
            return False
        values = self.propagation.values
        return all(
            self._is_bridged(user)
            if user in self._scrambled
            # Sizes, and tuples whose items are looked at one by one, pose no question of their own.
            else not isinstance(values[user], (Tensor, tuple, list))
            or (isinstance(values[user], Tensor) and self.gather(user) is not None)
            for user in node.users
        )
