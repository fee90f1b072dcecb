"""Labels of channels: tensors of integers that say, position by position, which channel a value belongs to.

A label tensor has the shape of the value it describes. Operations that move data are run on it as they
are; operations that combine values merge labels; operations that nobody has described freeze them. At
the end, labels that were merged form one class: channels that must live or die together.

Axes along which a label tensor is constant cost nothing: they are expanded (stride 0), and `compact`
leaves them out again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Classes:
    """What became of the labels once everything was merged.

    Attributes:
        of: (labels,) int64, the class of each label.
        frozen: (classes,) bool, whether the class must stay.
        reason: (classes,) int64, index into `reasons` of the first reason, -1 where not frozen.
        reasons: All reasons, in words, in the order of the graph.
    """

    of: Tensor
    frozen: Tensor
    reason: Tensor
    reasons: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of classes."""
        return len(self.frozen)

    def freeze(self, classes: Tensor, reason: str) -> Classes:
        """Return these classes with `classes` (any shape) frozen as well, for `reason` if they had none."""
        chosen = torch.zeros_like(self.frozen)
        chosen[classes.flatten()] = True
        chosen &= ~self.frozen
        reasons = torch.where(chosen, len(self.reasons), self.reason)
        return Classes(self.of, self.frozen | chosen, reasons, (*self.reasons, reason))


class LabelSpace:
    """Hands out labels, and remembers which are the same and which must stay."""

    def __init__(self) -> None:
        self.count = 0
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._frozen: list[tuple[Tensor, str]] = []

    def fresh(self, *shape: int) -> Tensor:
        """Return a tensor of labels never seen before."""
        first, self.count = self.count, self.count + math.prod(shape)
        return torch.arange(first, self.count).view(shape)

    def merge(self, first: Tensor, second: Tensor) -> None:
        """Declare labels the same, position by position after broadcasting."""
        if first is second:
            return
        first, second = compact(*torch.broadcast_tensors(first, second))
        self._pairs.append((first.flatten(), second.flatten()))

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Declare that the channels of `labels` must stay, and why."""
        self._frozen.append((compact(labels)[0].flatten(), reason))

    def line(self, labels: Tensor, axis: int) -> Tensor:
        """Return the labels along `axis` as a vector, with all that share a place on that axis merged."""
        rows = compact(labels.movedim(axis, -1))[0]
        # The axis itself may be constant too: its length must survive the compaction.
        rows = rows.expand(*rows.shape[:-1], labels.shape[axis]).reshape(-1, labels.shape[axis])
        if len(rows) > 1:
            self.merge(rows[1:], rows[:1])
        return rows[0]

    def solve(self) -> Classes:
        """Return the classes of all labels handed out so far."""
        if self._pairs:
            first, second = (torch.cat(side) for side in zip(*self._pairs, strict=True))
        else:
            first = second = torch.zeros(0, dtype=torch.int64)
        roots, of = torch.unique(_components(self.count, first, second), return_inverse=True)
        reason = torch.full((len(roots),), -1)
        for index in reversed(range(len(self._frozen))):
            reason[of[self._frozen[index][0]]] = index
        return Classes(of, reason >= 0, reason, tuple(text for _, text in self._frozen))


def compact(*labels: Tensor) -> tuple[Tensor, ...]:
    """Cut the axes along which all of `labels` (of one shape) are expanded down to length 1."""
    for axis in range(labels[0].dim()):
        if labels[0].shape[axis] > 1 and all(item.stride(axis) == 0 for item in labels):
            labels = tuple(item.narrow(axis, 0, 1) for item in labels)
    return labels


def spread(line: Tensor, axis: int, shape: tuple[int, ...]) -> Tensor:
    """Return labels of `shape` that vary along `axis` only, as `line` does."""
    axis %= len(shape)
    return line.view(*(-1 if position == axis else 1 for position in range(len(shape)))).expand(shape)


def varying_axes(labels: Tensor) -> tuple[int, ...]:
    """Axes along which `labels` are not constant."""
    small = compact(labels)[0]
    return tuple(
        axis
        for axis in range(small.dim())
        if small.shape[axis] > 1 and not torch.equal(small, small.narrow(axis, 0, 1).expand_as(small))
    )


def _components(count: int, first: Tensor, second: Tensor) -> Tensor:
    """Smallest member of the connected component of each of `count` labels, given edges first - second.

    Every root hooks onto the smallest root it meets, then all paths are shortened: a few rounds of
    whole-tensor operations instead of a loop over edges.
    """
    parent = torch.arange(count)
    while True:
        ours, theirs = parent[first], parent[second]
        apart = ours != theirs
        if not bool(apart.any()):
            return parent
        first, second, ours, theirs = first[apart], second[apart], ours[apart], theirs[apart]
        parent.scatter_reduce_(0, torch.maximum(ours, theirs), torch.minimum(ours, theirs), "amin")
        while not torch.equal(shorter := parent[parent], parent):
            parent = shorter
