"""Pushing labels through a graph: one pass that gives every node the labels of the value it yields."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from adaptify.graph.labels import LabelSpace, spread
from adaptify.graph.trace import Traced

Rule = Callable[..., Any]
"""(propagation, node, the node's arguments with labels in place of tensors) -> labels of what it yields."""

LARGEST_ATTRIBUTE = 1 << 20
"""Parameters used directly by the graph are labelled element by element up to this size."""


class Opaque:
    """Stands for a value that is no tensor and was made by an unknown operation."""


OPAQUE = Opaque()


@dataclass
class Use:
    """Channels on the axis of a module's (or parameter's) tensors.

    Attributes:
        kind: "write" and "read" for the outputs and inputs of a layer with weights, "carry" for the
            vectors of a per-channel module, "attribute" for a parameter that the graph uses itself.
        target: Qualified name of the module or parameter.
        labels: (n,) int64, label of each position on the axis (of each element, for an attribute).
        nodes: The nodes that call it.
    """

    kind: str
    target: str
    labels: Tensor
    nodes: list[fx.Node] = field(default_factory=list)


class Propagation:
    """The state of one pass over a graph.

    Attributes:
        root: The module tree.
        space: The labels.
        values: What each node yields: a label tensor, a tuple of them, a plain Python value, or `OPAQUE`.
        uses: Every use of channels, by (kind, target), in the order of the graph.
        moves: The nodes whose operation was run on labels as it is.
        pads: The nodes that add constant channels, with the label axis and the amounts (before, after).
    """

    def __init__(self, traced: Traced) -> None:
        self.root = traced.root
        self.graph = traced.graph
        self.space = LabelSpace()
        self.values: dict[fx.Node, Any] = {}
        self.uses: dict[tuple[str, str], Use] = {}
        self.moves: set[fx.Node] = set()
        self.pads: dict[fx.Node, tuple[int, int, int]] = {}
        self._owner: dict[tuple[str, int], Use] = {}
        self._owned = {
            id(parameter)
            for node in self.graph.nodes
            if node.op == "call_module"
            for parameter in self.root.get_submodule(node.target).parameters()
        }

    def run(self, find_rule: Callable[[Propagation, fx.Node], Rule | None]) -> None:
        """Visit all nodes in order, each with the rule that `find_rule` names (None: unknown)."""
        for node in self.graph.nodes:
            self.values[node] = self._visit(node, find_rule)

    def _visit(self, node: fx.Node, find_rule: Callable[[Propagation, fx.Node], Rule | None]) -> Any:
        if node.op == "placeholder":
            labels = self.space.fresh(node.meta["shape"][1])
            self.space.freeze(labels, f"{node.meta['name']} is the input of the network")
            return spread(labels, 1, node.meta["shape"])
        if node.op == "output":
            for parent in node.all_input_nodes:
                if isinstance(self.values[parent], Tensor):
                    self.space.freeze(
                        self.values[parent], f"{parent.meta['name']} is the output of the network"
                    )
            return OPAQUE
        if node.op == "get_attr":
            return self._attribute(node)
        args, kwargs = arguments = mapped(node.args, node.kwargs, self.values.__getitem__)
        if any(value is OPAQUE for value in _leaves(arguments)):
            return self.refuse(node, "gets a value that is not known", arguments)
        if not any(isinstance(value, Tensor) for value in _leaves(arguments)) and node.meta["shape"] is None:
            return self._plain(node, args, kwargs)
        rule = find_rule(self, node)
        if rule is None:
            return self.refuse(node, f"{self.operation(node)} is not known to keep channels apart", arguments)
        try:
            result = rule(self, node, *args, **kwargs)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            return self.refuse(node, f"{self.operation(node)} could not be followed ({error})", arguments)
        if isinstance(result, Tensor) and tuple(result.shape) != node.meta["shape"]:
            return self.refuse(node, f"{self.operation(node)} changes shape in a way not known", arguments)
        return result

    def _plain(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Arithmetic on sizes: done for real."""
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if callable(node.target):
            return node.target(*args, **kwargs)
        return OPAQUE

    def _attribute(self, node: fx.Node) -> Any:
        target = str(node.target)
        value = attribute(self.root, target)
        if not isinstance(value, Tensor):
            return value
        if value.numel() > LARGEST_ATTRIBUTE or not value.is_floating_point():
            return self.opaque(node, f"{target} is a table")
        if ("attribute", target) not in self.uses:
            labels = self.space.fresh(*value.shape)
            self.uses["attribute", target] = Use("attribute", target, labels.flatten(), [node])
            if id(value) in self._owned:
                self.space.freeze(labels, f"{target} is used by a module and by the graph itself")
        else:
            self.uses["attribute", target].nodes.append(node)
        return self.uses["attribute", target].labels.view(value.shape)

    def use(self, kind: str, node: fx.Node, line: Tensor, owner: object) -> Tensor:
        """Note that `line` (n,) are the channels on an axis of a module's tensors.

        What shares the tensor `owner`, by being called twice or by tied weights, shares its channels.
        """
        target = str(node.target)
        known = self._owner.setdefault((kind, id(owner)), Use(kind, target, line))
        self.space.merge(known.labels, line)
        self.uses.setdefault((kind, target), Use(kind, target, known.labels)).nodes.append(node)
        return known.labels

    def produced(self, node: fx.Node, count: int, owner: object) -> Tensor:
        """Return the labels (count,) of the channels that a layer writes."""
        known = self._owner.get(("write", id(owner)))
        return self.use("write", node, known.labels if known else self.space.fresh(count), owner)

    def opaque(self, node: fx.Node, reason: str) -> Any:
        """Return what stands for a value whose channels are not known: one label that must stay."""
        if node.meta.get("shape") is None:
            return OPAQUE
        label = self.space.fresh(1)
        self.space.freeze(label, reason)
        return label.expand(node.meta["shape"])

    def refuse(self, node: fx.Node, reason: str, arguments: Any) -> Any:
        """Freeze all labels among `arguments`, and return an opaque value."""
        reason = f"{node.meta['name']}: {reason}"
        for value in _leaves(arguments):
            if isinstance(value, Tensor):
                self.space.freeze(value, reason)
        return self.opaque(node, reason)

    def operation(self, node: fx.Node) -> str:
        """Name of the operation of `node`, for the user."""
        if node.op == "call_module":
            return type(self.root.get_submodule(str(node.target))).__name__
        return (
            node.target
            if isinstance(node.target, str)
            else str(getattr(node.target, "__name__", node.target))
        )


def mapped(args: Any, kwargs: Any, function: Callable[[fx.Node], Any]) -> tuple[Any, Any]:
    """Return arguments with `function(node)` in place of every node, at any depth."""
    result: Any = fx.map_arg((args, kwargs), function)
    return result[0], result[1]


def attribute(root: nn.Module, target: str) -> Any:
    """Return what `root` holds under the qualified name `target`."""
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _leaves(value: Any) -> Iterable[Any]:
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    else:
        yield value
