"""Channels with the same writers and readers, put together into groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adaptify.graph.labels import Classes
from adaptify.graph.propagation import Use


@dataclass(frozen=True)
class Member:
    """A module (or parameter) that has the channels of a group on one of its axes.

    Attributes:
        kind: "write" (outputs of a layer with weights), "read" (its inputs), "carry" (a per-channel
            module such as BatchNorm) or "attribute" (elements of a parameter the graph uses itself).
        target: Qualified name of the module or parameter.
        positions: (size, width) int64, where on that axis each channel of the group is. The width is 1
            but for grouped convolutions, flattened images and the like.
    """

    kind: str
    target: str
    positions: Tensor


@dataclass(frozen=True)
class ChannelGroup:
    """Channels with the same writers and readers, to be kept or removed one by one.

    Attributes:
        name: Qualified name of the first layer that writes them.
        size: Number of choices; each stands for `width` channels of a member.
        members: Everything that has these channels on an axis, in the order of the graph.
        frozen_reason: Why none of them can be removed, or None.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    frozen_reason: str | None

    def of_kind(self, kind: str) -> tuple[Member, ...]:
        """The members of one kind."""
        return tuple(member for member in self.members if member.kind == kind)

    @property
    def width(self) -> int:
        """Channels of the layer that writes the group that one choice stands for."""
        return int(self.of_kind("write")[0].positions.shape[1])

    def chunk(self, round_to: int) -> int:
        """Return how many choices make `round_to` channels, or a part of that in groups of less than four."""
        chunk = max(1, round_to // self.width)
        while chunk > 1 and self.size < 4 * chunk:
            chunk //= 2
        return chunk


@dataclass(frozen=True)
class Grouping:
    """The groups of a network, and where each class is in them.

    Attributes:
        groups: In the order of the graph.
        group: (classes,) index of the group of each class, -1 for classes that no layer writes.
        atom: (classes,) position of the class in its group.
    """

    groups: tuple[ChannelGroup, ...]
    group: Tensor
    atom: Tensor


def form_groups(uses: list[Use], classes: Classes) -> Grouping:
    """Put classes together that occur, and equally often, in the same uses."""
    lines = [classes.of[use.labels] for use in uses]
    kind = _partition(lines, classes.frozen.to(torch.int64))
    written = torch.zeros(classes.count, dtype=torch.bool)
    for use, line in zip(uses, lines, strict=True):
        if use.kind == "write":
            written[line] = True
    group = torch.full((classes.count,), -1)
    atom = torch.full((classes.count,), -1)
    members: list[list[Member]] = []
    for use, line in zip(uses, lines, strict=True):
        positions = written[line].nonzero().flatten()
        new = positions[group[line[positions]] < 0]
        for value in dict.fromkeys(kind[line[new]].tolist()):
            atoms = _distinct(line[new][kind[line[new]] == value])
            group[atoms] = len(members)
            atom[atoms] = torch.arange(len(atoms))
            members.append([])
        for index in dict.fromkeys(group[line[positions]].tolist()):
            here = positions[group[line[positions]] == index]
            order = torch.sort(atom[line[here]], stable=True).indices
            size = int(atom[line[here]].max()) + 1
            members[index].append(Member(use.kind, use.target, here[order].view(size, -1)))
    return Grouping(_name_groups(members, classes, group), group, atom)


def _partition(lines: list[Tensor], kind: Tensor) -> Tensor:
    """Refine the partition `kind` (classes,) until equal classes occur equally often in every line."""
    following = 2
    for line in lines:
        present, counts = torch.unique(line, return_counts=True)
        before = kind[present] * (int(counts.max()) + 1) + counts
        distinct, refined = torch.unique(before, return_inverse=True)
        kind[present] = following + refined
        following += len(distinct)
    return kind


def _distinct(values: Tensor) -> Tensor:
    """The distinct `values`, in the order of their first occurrence."""
    found: Tensor
    found, inverse = torch.unique(values, return_inverse=True)
    first = torch.full((len(found),), len(values))
    first.scatter_reduce_(0, inverse, torch.arange(len(values)), "amin")
    return found[first.argsort()]


def _name_groups(members: list[list[Member]], classes: Classes, group: Tensor) -> tuple[ChannelGroup, ...]:
    groups = []
    seen: dict[str, int] = {}
    for index, group_members in enumerate(members):
        first = next(member.target for member in group_members if member.kind == "write")
        seen[first] = seen.get(first, 0) + 1
        name = first if seen[first] == 1 else f"{first}#{seen[first]}"
        inside = (group == index).nonzero().flatten()
        reason = int(classes.reason[inside[0]])
        frozen_reason = classes.reasons[reason] if reason >= 0 else None
        groups.append(ChannelGroup(name, len(inside), tuple(group_members), frozen_reason))
    return tuple(groups)
