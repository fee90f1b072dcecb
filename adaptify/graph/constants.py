"""Values that no longer depend on the input once channels are closed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from adaptify.graph.adapters import ADAPTERS
from adaptify.graph.channels import Channels
from adaptify.graph.copying import share_copy
from adaptify.graph.labels import compact
from adaptify.graph.liveness import Liveness
from adaptify.graph.masking import along_channels
from adaptify.graph.propagation import attribute, mapped


def constant_values(channels: Channels, kept: Tensor, live: Liveness) -> dict[fx.Node, nn.Parameter]:
    """Compute what the constant nodes yield that the rest of the network needs.

    A layer that reads nothing yields its bias; the layers behind it (BatchNorm, activations, further
    convolutions) are run on that, in evaluation mode.

    Returns:
        Node -> parameter of the shape of one sample's value with its batch axis, (1, C, ...), all channels
        that stay; positions that are equal by construction have length 1.
    """
    wanted = [node for node in channels.traced.graph.nodes if node in live.constant and node in live.needed]
    if not wanted:
        return {}
    folding = _Folding(channels, kept, live)
    return {node: folding.parameter(node) for node in wanted}


class _Folding:
    def __init__(self, channels: Channels, kept: Tensor, live: Liveness) -> None:
        self.channels = channels
        self.kept = kept
        self.live = live
        self.root = share_copy(channels.traced.root).eval()
        self.values: dict[fx.Node, Any] = {}
        self.uniform: dict[fx.Node, bool] = {}
        self.reads = {
            node: use.labels
            for use in channels.propagation.uses.values()
            if use.kind == "read"
            for node in use.nodes
        }
        tensor = next(self.root.parameters())
        self.options: dict[str, Any] = {"dtype": tensor.dtype, "device": tensor.device}

    def parameter(self, node: fx.Node) -> nn.Parameter:
        """What `node` yields, without the channels that go and the positions that are all the same."""
        value = self.value(node)[:1]
        labels = self.channels.propagation.values[node]
        axis = self.channels.movements.axis(labels)
        if axis is not None:
            stays = self.kept[self.channels.movements.of(labels)]
            line = stays.movedim(axis, -1).reshape(-1, labels.shape[axis]).all(0)
            value = value.index_select(axis, line.nonzero().flatten().to(value.device))
        if self.uniform[node]:
            for position in range(1, value.dim()):
                if compact(labels)[0].shape[position] == 1:
                    value = value.narrow(position, 0, 1)
        return nn.Parameter(value.detach().clone())

    def value(self, node: fx.Node) -> Any:
        """What `node` yields for a batch of two, channels that nobody reads being whatever they are."""
        if node not in self.values:
            with torch.no_grad():
                self.values[node] = self._compute(node)
        return self.values[node]

    def _compute(self, node: fx.Node) -> Any:
        labels = self.channels.propagation.values[node]
        if node.op == "get_attr":
            return attribute(self.root, str(node.target))
        if not isinstance(labels, Tensor) and node not in self.live.constant:
            return labels
        if node not in self.live.constant:
            return torch.zeros(node.meta["shape"], **self.options)
        parents = [p for p in node.all_input_nodes if isinstance(self.channels.propagation.values[p], Tensor)]
        args, kwargs = mapped(node.args, node.kwargs, self.value)
        # Equal at all positions: true of a bias, and of what treats every position alike.
        reads_nothing, layer = False, None
        if node in self.reads:
            mask = self.kept[self.channels.classes.of[self.reads[node]]]
            reads_nothing = not bool(mask.any()) and len(parents) == 1
            layer = self.root.get_submodule(str(node.target))
            args = (args[0] * along_channels(mask, layer, node).to(args[0]), *args[1:])
        pointwise = (
            (node not in self.reads or isinstance(layer, ADAPTERS))
            and all(tuple(self.values[p].shape) == node.meta["shape"] or p.op == "get_attr" for p in parents)
            and node not in self.channels.propagation.moves
        )
        self.uniform[node] = reads_nothing or (
            pointwise
            and all(self.uniform.get(p, False) for p in parents if p in self.live.constant)
            and not any(p.op == "get_attr" for p in parents)
        )
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]
