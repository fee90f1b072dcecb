"""Removing channels and blocks for real: smaller layers, and a graph that fits them.

The graph is rebuilt node by node on the labels of the channels that stay. An operation that moves data is
tried as it is; where its result is not what must be left of the old one, its sizes are written anew (views,
splits, slices, padding), and where that is not enough (a channel shuffle) the movement becomes one selection.
What comes out is run again for its shapes before it is handed back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from adaptify.errors import ModelError
from adaptify.graph.channels import Channels
from adaptify.graph.constants import constant_values
from adaptify.graph.copying import share_copy
from adaptify.graph.labels import compact
from adaptify.graph.leftovers import tidy
from adaptify.graph.literals import Call, out_of_place, padded, resized
from adaptify.graph.liveness import find_live
from adaptify.graph.network import GraphNetwork, attach, drop_unused
from adaptify.graph.propagation import OPAQUE, mapped
from adaptify.graph.rules import run_move
from adaptify.graph.shapes import annotate_shapes
from adaptify.graph.sites import BlockSite
from adaptify.graph.slicing import slice_modules
from adaptify.graph.trace import Traced


def remove_channels(channels: Channels, keep: Mapping[str, Tensor], *, keep_adapters: bool = False) -> Traced:
    """Return the network with only the channels that `keep` (group name -> (size,) bool) leaves.

    It computes what `masking.mask_channels` computes, in evaluation mode, with layers that are physically
    smaller. Where a group loses all its channels, the layers behind it yield constants: they become
    parameters, and what only served the lost channels disappears, whole residual branches included.

    The given network is left as it is; all tensors of the result are copies. Its root is a module that
    runs by itself, trains, copies and traces again.

    Args:
        channels: The channels of the network.
        keep: What is left of them; groups that are not named stay whole.
        keep_adapters: Whether adapters stay that pass everything on.

    Raises:
        ModelError: The masks do not fit, leave nothing of the network, or an operation cannot be rewritten.
    """
    return _Rebuild(channels, keep).traced(keep_adapters)


def remove_blocks(traced: Traced, blocks: Iterable[BlockSite]) -> Traced:
    """Return the network without the residual branches of `blocks`: x + f(x) becomes x (or its projection).

    Raises:
        ModelError: A block is not in this network.
    """
    graph = copy.deepcopy(traced.graph)
    nodes = {node.name: node for node in graph.nodes}
    for block in blocks:
        if block.add not in nodes or block.shortcut not in nodes:
            raise ModelError(f"the network has no block '{block.name}'", "Find the blocks of this network.")
        nodes[block.add].replace_all_uses_with(nodes[block.shortcut])
        graph.erase_node(nodes[block.add])
        # Where blocks follow each other, the shortcut of the next is what this one leaves.
        nodes[block.add] = nodes[block.shortcut]
    return _finish(share_copy(traced.root, lambda tensor: tensor.detach().clone()), graph, traced)


def _finish(root: nn.Module, graph: fx.Graph, before: Traced, keep_adapters: bool = False) -> Traced:
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
    if not keep_adapters:
        tidy(root, graph)
    drop_unused(root, graph)
    annotate_shapes(root, graph, before.input_shape)
    return Traced(GraphNetwork(root, graph), graph, before.input_shape, before.notes)


class _Rebuild:
    """One new graph in the making.

    Attributes:
        labels: What each old node yields in the new network: labels, plain values, or None (a tensor on
            the way to a selection that cannot be made of what is left).
        new: The new node, or the literal, that stands for each old node.
    """

    def __init__(self, channels: Channels, keep: Mapping[str, Tensor]) -> None:
        self.channels = channels
        self.values = channels.propagation.values
        self.movements = channels.movements
        self.kept = channels.kept_classes(keep)
        self.live = find_live(channels, keep)
        self.labels: dict[fx.Node, Any] = {}
        self.new: dict[fx.Node, Any] = {}
        self.graph = fx.Graph()
        self.running = [node for node in channels.traced.graph.nodes if self.live.computed(node)]
        targets = {str(node.target) for node in self.running if node.op in ("call_module", "get_attr")}
        self.root = slice_modules(channels, self.kept, targets)

    def traced(self, keep_adapters: bool) -> Traced:
        """Build the graph, run it for its shapes, and check every node."""
        constants = constant_values(self.channels, self.kept, self.live)
        for node in self.channels.traced.graph.nodes:
            if node in constants:
                self.labels[node] = self._cut(self.values[node])
                name = attach(self.root, "constants", node.meta["name"], constants[node])
                self.new[node] = self._annotated(self.graph.get_attr(name), node)
            elif node in self.live.same and self.live.computed(node):
                self.new[node] = self.new[self.live.same[node]]
                self.labels[node] = self.labels[self.live.same[node]]
            elif self.live.computed(node):
                self._add(node)
        result = _finish(self.root, self.graph, self.channels.traced, keep_adapters)
        alive = set(self.graph.nodes)
        for node in self.running:
            labels, new = self.labels.get(node), self.new.get(node)
            if (
                isinstance(labels, Tensor)
                and new is not None
                and new in alive
                and new.meta["shape"] != tuple(labels.shape)
            ):
                raise self._failure(node, f"yields {new.meta['shape']} instead of {tuple(labels.shape)}")
        return result

    def _failure(self, node: fx.Node, what: str) -> ModelError:
        return ModelError(
            f"channels cannot be removed: {node.meta['name']} {what}",
            "Keep the channels that pass it.",
        )

    # What must be left of values.

    def _line(self, labels: Tensor) -> tuple[int, Tensor] | None:
        """The channel axis of a value, and which positions on it stay; None where all do."""
        axis = self.movements.axis(labels)
        small = compact(labels)[0]
        stays = self.kept[self.channels.classes.of[small]]
        if bool(stays.all()):
            return None
        if axis is None:
            # One channel all over: it goes as a whole, and with it the value.
            return next(i for i in range(labels.dim() - 1, -1, -1) if labels.shape[i]), stays.new_zeros(1)
        # Positions along the axis stay or go as a whole, but where they hold frozen channels only.
        return axis, stays.movedim(axis, -1).reshape(-1, small.shape[axis]).all(0)

    def _cut(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
            return tuple(self._cut(item) for item in value)
        line = self._line(value) if isinstance(value, Tensor) else None
        if line is None:
            return value
        axis, stays = line
        shape = list(value.shape)
        shape[axis] = int(stays.sum())
        return compact(value)[0].index_select(axis, stays.nonzero().flatten()).expand(shape)

    # Nodes.

    def _add(self, node: fx.Node) -> None:
        if node in self.channels.propagation.moves:
            self._add_move(node)
        elif node.op == "output" or node.meta["shape"] is not None or self.values[node] is OPAQUE:
            self._add_computation(node)
        else:
            self._add_number(node)

    def _add_number(self, node: fx.Node) -> None:
        """A size, or a computation with sizes: it follows the sizes that are left."""
        if any(parent not in self.new for parent in node.all_input_nodes):
            if "constant" in node.meta:
                self.new[node] = self.labels[node] = node.meta["constant"]
                return
            # What is asked is the size of the batch: the images know it as well.
            images = next(iter(self.channels.traced.graph.nodes))
            for parent in node.all_input_nodes:
                self.new.setdefault(parent, self.new[images])
                self.labels.setdefault(parent, self.labels[images])
        args, kwargs = mapped(node.args, node.kwargs, self.labels.__getitem__)
        if any(argument is None for argument in args):
            self.labels[node] = self.values[node]
        elif node.op == "call_method":
            self.labels[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        elif node.op == "get_attr":
            self.labels[node] = self.values[node]
        else:
            self.labels[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        self.new[node] = self.graph.node_copy(node, self.new.__getitem__)

    def _add_computation(self, node: fx.Node) -> None:
        """Anything but a movement: the layers have their new sizes already."""
        call = Call(node.op, node.target, node.args, dict(node.kwargs))
        self.labels[node] = self._cut(self.values[node]) if node.op != "output" else None
        if node in self.channels.propagation.pads:
            axis, before, after = self.channels.propagation.pads[node]
            line = self._line(self.values[node])
            if line is not None:
                stays = line[1]
                call = padded(node, axis, int(stays[:before].sum()), int(stays[len(stays) - after :].sum()))
        self._create(node, call)

    def _add_move(self, node: fx.Node) -> None:
        call = Call(node.op, node.target, node.args, dict(node.kwargs))
        if self.movements.is_scrambled(node):
            self.labels[node] = self._run(node, call)
            self._create(node, call)
            return
        expected = self.labels[node] = self._cut(self.values[node])
        source = node.args[0]
        assert isinstance(source, fx.Node)
        untouched = expected is self.values[node] and self.labels.get(source) is self.values[source]
        if not untouched and not _equal(self._run(node, call), expected):
            line = None
            if isinstance(self.values[source], Tensor) and not self.movements.is_scrambled(source):
                line = self._line(self.values[source])
            name = self.channels.propagation.operation(node)
            rewritten = resized(node, name, expected, self.labels.__getitem__, line)
            if rewritten is not None and _equal(self._run(node, rewritten), expected):
                call = rewritten
            else:
                self._add_selection(node)
                return
        self._create(node, call)

    def _add_selection(self, node: fx.Node) -> None:
        gather = self.movements.gather(node)
        if gather is None:
            raise self._failure(node, "does not take other sizes")
        before, after = self._line(self.values[gather.source]), self._line(self.values[node])
        length = self.values[gather.source].shape[gather.axis]
        numbers = before[1].cumsum(0) - 1 if before else torch.arange(length)
        index = numbers[gather.index[after[1]] if after else gather.index]
        device = next(self.root.parameters()).device
        name = attach(self.root, "selections", node.meta["name"], index.to(device))
        table = self._annotated(self.graph.get_attr(name), node)
        new = self.graph.call_function(torch.index_select, (self.new[gather.source], gather.axis, table))
        self.new[node] = self._annotated(new, node, node.meta["name"])

    def _run(self, node: fx.Node, call: Call) -> Any:
        """What `call` yields of the labels that are left; None if it cannot run."""
        args, kwargs = mapped(call.args, call.kwargs, self.labels.get)
        try:
            if isinstance(args[0], tuple):
                return args[0][args[1]]
            if call.op == node.op and call.target is node.target:
                return run_move(self.root, node, *args, **kwargs)
            if call.op == "call_method":
                name = "reshape" if call.target == "view" else call.target
                return getattr(args[0], name)(*args[1:], **kwargs)
            return call.target(*args, **kwargs)
        except (RuntimeError, IndexError, TypeError, ValueError, AttributeError):
            return None

    # Construction.

    def _create(self, node: fx.Node, call: Call) -> None:
        if call.args and isinstance(call.args[0], fx.Node) and call.args[0] in self.live.constant:
            call = out_of_place(call)
        args, kwargs = _without(self.live.empty, (call.args, call.kwargs))
        args, kwargs = mapped(args, kwargs, lambda parent: self._operand(node, parent))
        new = self.graph.create_node(call.op, call.target, args, kwargs, node.name, node.type)
        self.new[node] = self._annotated(new, node, node.meta["name"])

    def _operand(self, user: fx.Node, parent: fx.Node) -> Any:
        if parent in self.live.constant and isinstance(self.values[parent], Tensor):
            return self._constant_operand(user, parent)
        is_number = parent.meta["shape"] is None and user not in self.channels.propagation.moves
        if is_number and "constant" in parent.meta and self.labels.get(parent) != parent.meta["constant"]:
            # A scale such as 1 / sqrt(channels) belongs to the function, not to the channels left.
            return parent.meta["constant"]
        return self.new[parent]

    def _constant_operand(self, user: fx.Node, parent: fx.Node) -> fx.Node:
        """A constant, in full size unless another operand of the user brings the size along."""
        new: fx.Node = self.new[parent]
        others = [other for other in user.all_input_nodes if other not in self.live.constant]
        moves = user in self.channels.propagation.moves or isinstance(user.args[0], (tuple, list))
        if not moves and any(other.meta["shape"] == user.meta["shape"] for other in others):
            return new
        images = next(iter(self.graph.nodes))
        count = self._annotated(self.graph.call_method("size", (images, 0)), parent)
        shape = self.labels[parent].shape[1:]
        return self._annotated(self.graph.call_method("expand", (new, count, *shape)), parent)

    def _annotated(self, new: fx.Node, old: fx.Node, name: str | None = None) -> fx.Node:
        new.meta = {**old.meta, "name": name or f"{old.meta['name']}.{new.name}"}
        return new


def _equal(labels: Any, expected: Any) -> bool:
    if isinstance(expected, tuple):
        return (
            isinstance(labels, (tuple, list))
            and len(labels) == len(expected)
            and all(_equal(ours, theirs) for ours, theirs in zip(labels, expected, strict=True))
        )
    if not isinstance(labels, Tensor) or labels.shape != expected.shape:
        return False
    return torch.equal(*compact(labels, expected)) if labels.numel() else True


def _without(removed: frozenset[fx.Node], arguments: Any) -> Any:
    """`arguments` with nodes that have no channels left taken out of lists of tensors."""
    if isinstance(arguments, (tuple, list)):
        gone = [isinstance(item, fx.Node) and item in removed for item in arguments]
        kept = [_without(removed, item) for item, drop in zip(arguments, gone, strict=True) if not drop]
        return tuple(kept) if isinstance(arguments, tuple) else kept
    if isinstance(arguments, dict):
        return {key: _without(removed, value) for key, value in arguments.items()}
    return arguments
