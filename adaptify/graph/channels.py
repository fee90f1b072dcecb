"""Which channels of a network are the same channel.

Every layer with weights labels its outputs, the labels are pushed through the graph (`propagation`,
`rules`), and labels that were merged form a class: channels that can only be removed together. Classes
that are written and read by the same layers form a `ChannelGroup` (`grouping`).

A channel is closed when nobody reads it any more. That is exact in residual and in concatenating
networks alike, through BatchNorm too, because nothing else looks at the value.

Grouped convolutions give up whole convolution groups: the inputs and outputs of one group are one
channel here. Operations that nobody has described freeze what enters them, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from adaptify.errors import ModelError, did_you_mean
from adaptify.graph.adapter_rules import Rows, close, find_rows, freeze_streams
from adaptify.graph.grouping import ChannelGroup, Grouping, form_groups
from adaptify.graph.labels import Classes, compact
from adaptify.graph.movement import Movements
from adaptify.graph.propagation import Propagation
from adaptify.graph.rule_tables import find_rule
from adaptify.graph.sites import ADDITIONS
from adaptify.graph.trace import Traced

_OTHER_NETWORK = "The masks were made for another network, or another version of it."


@dataclass(frozen=True)
class Channels:
    """The channels of a traced network.

    Attributes:
        traced: The network.
        propagation: The labels of every node.
        movements: How channels lie in every value.
        grouping: The groups, and which class is where in them.
        rows: What adapters tie together; none in a network that was not decoupled.
    """

    traced: Traced
    propagation: Propagation
    movements: Movements
    grouping: Grouping
    rows: tuple[Rows, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Channels:
        # What was found out about a graph never changes: copies of a model share it.
        return self

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """All groups that layers write, frozen ones too, in the order of the graph."""
        return self.grouping.groups

    @property
    def classes(self) -> Classes:
        """Which labels are the same channel."""
        return self.movements.classes

    @cached_property
    def removable(self) -> tuple[ChannelGroup, ...]:
        """The groups that are not frozen."""
        return tuple(group for group in self.groups if group.frozen_reason is None)

    @cached_property
    def by_name(self) -> Mapping[str, ChannelGroup]:
        """The groups by name."""
        return MappingProxyType({group.name: group for group in self.groups})

    @cached_property
    def frozen_reasons(self) -> Mapping[str, tuple[str, ...]]:
        """Reason -> names of the groups frozen for it, in the order of the graph."""
        found: dict[str, list[str]] = {}
        for group in self.groups:
            if group.frozen_reason is not None:
                found.setdefault(group.frozen_reason, []).append(group.name)
        return MappingProxyType({reason: tuple(names) for reason, names in found.items()})

    @cached_property
    def streams(self) -> frozenset[str]:
        """Names of the groups with channels that several layers add to, as in residual networks."""
        return frozenset(
            name for node in self.traced.graph.nodes if _adds_up(node) for name in self.groups_at(node)
        )

    def groups_at(self, node: fx.Node) -> list[str]:
        """Return the names of the groups whose channels are in the value of `node`."""
        labels = self.propagation.values[node]
        if not isinstance(labels, Tensor):
            return []
        numbers = self.grouping.group[self.classes.of[compact(labels)[0]]].unique().tolist()
        return [self.groups[number].name for number in numbers if number >= 0]

    def group(self, name: str) -> ChannelGroup:
        """Return the group called `name`.

        Raises:
            ModelError: There is none.
        """
        if name not in self.by_name:
            raise ModelError(
                f"the network has no channel group '{name}'{did_you_mean(name, self.by_name)}", _OTHER_NETWORK
            )
        return self.by_name[name]

    def check(self, keep: Mapping[str, Tensor]) -> None:
        """Check that the masks fit the groups.

        Raises:
            ModelError: An unknown group, a mask of the wrong size, or a removal from a frozen group.
        """
        for name, mask in keep.items():
            group = self.group(name)
            if tuple(mask.shape) != (group.size,):
                raise ModelError(
                    f"channel group '{name}' has {group.size} channels, its mask {tuple(mask.shape)}",
                    _OTHER_NETWORK,
                )
            if group.frozen_reason is not None and not bool(mask.all()):
                raise ModelError(
                    f"channels of '{name}' cannot be removed: {group.frozen_reason}",
                    "Keep all channels of this group.",
                )

    def complete(self, keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the masks (group name -> (size,) bool) with all that follows from what they close.

        In a decoupled network a channel leaves a stream when no block reads it any more, and what closed
        blocks alone have read is closed as well (`adapter_rules.close`). All that works with masks
        completes them by itself; in other networks nothing is added.

        Raises:
            ModelError: The masks do not fit, as in `check`.
        """
        if not self.rows:
            self.check(keep)
            return {name: mask.bool() for name, mask in keep.items()}
        kept = self.kept_classes(keep)
        completed = {}
        for group in self.removable:
            inside = self._members[group.name]
            if group.name in keep or not bool(kept[inside].all()):
                completed[group.name] = kept[inside]
        return completed

    def kept_classes(self, keep: Mapping[str, Tensor]) -> Tensor:
        """Return (classes,) bool: what stays under the completed `keep`; without a mask, groups stay whole.

        Raises:
            ModelError: The masks do not fit, as in `check`.
        """
        self.check(keep)
        kept = torch.ones(self.classes.count, dtype=torch.bool)
        for name, mask in keep.items():
            kept[self._members[name]] = mask.detach().cpu().bool()
        if not self.rows:
            return kept
        closed = close(self.propagation.uses, self.classes, self.rows, kept)
        # Classes that no layer writes are no choices.
        return closed | (self.grouping.group < 0)

    @cached_property
    def _members(self) -> Mapping[str, Tensor]:
        """Group name -> its classes, in the order of the group."""
        count = max((group.size for group in self.groups), default=0) + 1
        order = (self.grouping.group * count + self.grouping.atom).argsort()
        order = order[self.grouping.group[order] >= 0]
        parts = order.split([group.size for group in self.groups])
        return {group.name: part for group, part in zip(self.groups, parts, strict=True)}


def _adds_up(node: fx.Node) -> bool:
    """Whether `node` adds two computed values of the same shape; a bias is none."""
    operands = node.all_input_nodes
    return (
        node.target in ADDITIONS
        and len(operands) == 2
        and all(x.op != "get_attr" and x.meta["shape"] == node.meta["shape"] for x in operands)
    )


def find_channels(traced: Traced) -> Channels:
    """Find out which channels of `traced` are the same channel. Runs no data; takes milliseconds."""
    propagation = Propagation(traced)
    propagation.run(find_rule)
    movements = Movements(propagation)
    rows = find_rows(propagation, movements.classes)
    movements.classes = freeze_streams(movements.classes, rows)
    grouping = form_groups(list(propagation.uses.values()), movements.classes)
    return Channels(traced, propagation, movements, grouping, rows)
