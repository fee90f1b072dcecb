"""Convolutions for the CPU: weights packed once, ReLU and residual addition done while the result is written.

On a small network a third of the time goes into starting operations and moving results to memory and back;
fusing takes three operations of a residual block's end to one. The operations are PyTorch's own, but
private and without a gradient: they are used for inference only, and left alone where they are missing.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from adaptify.graph.leftovers import is_relu
from adaptify.graph.trace import Traced
from adaptify.runtime.packing import ALWAYS, MANY, PackingTable

_ADDITIONS = (operator.add, operator.iadd, torch.add)


class PackedConv2d(nn.Module):
    """A convolution with packed weights: act(conv(x)), or act(conv(x) + other).

    Packing depends on whether there is one image or more, so there are two packs. They are not part of
    the state dict.

    Args:
        conv: The convolution; ordinary float32 weights on the CPU, zero padding.
        shape: Shape (N, C, H, W) of its input, for any N.
        relu: Whether act is ReLU; otherwise it is the identity.
        add: Whether a second tensor is added.
        table: What is known of whether packing pays; None: weights are packed for all batches.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        shape: tuple[int, ...],
        *,
        relu: bool,
        add: bool,
        table: PackingTable | None = None,
    ) -> None:
        super().__init__()
        geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        pack = torch.ops.mkldnn._reorder_convolution_weight
        weight = conv.weight.detach()
        self.single: Tensor | None = pack(weight, *geometry, [1, *shape[1:]])
        self.many: Tensor | None = pack(weight, *geometry, [MANY, *shape[1:]])
        self.weight: Tensor | None = weight
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.geometry = geometry
        self.unary = "relu" if relu else "none"
        self.add = add
        ways = (self._packed, self._plain)
        chosen = ALWAYS if table is None else table.of(conv, shape, (add, relu), *ways)
        self.single = self.single if chosen.single else None
        self.many = self.many if chosen.many else None
        if chosen == ALWAYS:
            self.weight = None

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """(N, C, H, W) to (N, M, H', W'); `other` has the shape of the result."""
        weight = self.single if x.shape[0] == 1 else self.many
        return self._plain(x, other) if weight is None else self._packed(x, other)

    def _plain(self, x: Tensor, other: Tensor | None) -> Tensor:
        padding, stride, dilation, groups = self.geometry
        result = torch.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)  # type: ignore[arg-type]
        if other is not None:
            result.add_(other)
        return result.relu_() if self.unary == "relu" else result

    def _packed(self, x: Tensor, other: Tensor | None) -> Tensor:
        weight = self.single if x.shape[0] == 1 else self.many
        operation = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            # By its full name: to look for the overload takes as long as a small convolution.
            result: Tensor = operation.default(x, weight, self.bias, *self.geometry, self.unary, [], "")
            return result
        unary = None if self.unary == "none" else self.unary
        result = operation.binary(x, other, weight, self.bias, *self.geometry, "add", 1.0, unary, [], "")
        return result


def can_fuse() -> bool:
    """Whether this PyTorch has the operations."""
    namespace = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and all(
        hasattr(namespace, name) for name in ("_convolution_pointwise", "_reorder_convolution_weight")
    )


def fuse_convolutions(traced: Traced, *, keep: Collection[str] = ()) -> Traced:
    """Replace convolutions, with the addition and the ReLU that follow them, by packed ones.

    Whether packing pays for a kind of convolution is measured when the first of it is seen (milliseconds),
    and remembered.

    Args:
        traced: Its root must own its modules: it is modified. It computes the same function afterwards.
        keep: Names of nodes whose values must stay what they are (something is attached to them).
    """
    with PackingTable() as table:
        return _fused(traced, keep, table)


def _fused(traced: Traced, keep: Collection[str], table: PackingTable) -> Traced:
    ends = _find_ends(traced, keep)
    inside = {node for end in ends.values() for node in end.nodes}
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        end = ends.get(node)
        if end is None:
            if node not in inside:
                copies[node] = graph.node_copy(node, copies.__getitem__)
            continue
        name = str(end.conv.target)
        source = end.conv.all_input_nodes[0]
        conv = traced.root.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        packed = PackedConv2d(
            conv, source.meta["shape"], relu=end.relu, add=end.other is not None, table=table
        )
        traced.root.set_submodule(name, packed)
        inputs = [source] if end.other is None else [source, end.other]
        fused = graph.create_node("call_module", name, tuple(copies[item] for item in inputs), name=node.name)
        fused.meta = dict(node.meta)
        copies[node] = fused
    return replace(traced, graph=graph)


@dataclass
class _End:
    """A convolution and what is fused into it; the value is that of the last of `nodes`."""

    conv: fx.Node
    nodes: list[fx.Node]
    other: fx.Node | None = None
    relu: bool = False


def _find_ends(traced: Traced, keep: Collection[str]) -> dict[fx.Node, _End]:
    """For the last node of each fusible group: the group."""
    order = {node: index for index, node in enumerate(traced.graph.nodes)}
    uses: dict[object, int] = {}
    for node in traced.graph.nodes:
        uses[node.target] = uses.get(node.target, 0) + 1
    ends: dict[fx.Node, _End] = {}
    taken: set[fx.Node] = set()
    for conv in traced.graph.nodes:
        if not _is_packable(traced.root, conv) or uses[conv.target] != 1:
            continue
        end = _End(conv, [conv])
        addition = _only_user(conv, keep)
        if addition is not None and addition not in taken:
            other = _added(addition, conv)
            # The convolution moves to the addition: nothing may have written over its input meanwhile.
            moved = max(order[user] for user in conv.all_input_nodes[0].users) <= order[conv]
            if other is not None and moved:
                end.nodes.append(addition)
                end.other = other
        relu = _only_user(end.nodes[-1], keep)
        if relu is not None and is_relu(traced.root, relu):
            end.nodes.append(relu)
            end.relu = True
        taken.update(end.nodes)
        ends[end.nodes[-1]] = end
    return ends


def _is_packable(root: nn.Module, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    conv = root.get_submodule(str(node.target))
    return (
        type(conv) is nn.Conv2d
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and conv.weight.dtype == torch.float32
        and conv.weight.device.type == "cpu"
    )


def _only_user(node: fx.Node, keep: Collection[str]) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 and node.name not in keep else None


def _added(addition: fx.Node, conv: fx.Node) -> fx.Node | None:
    """What `addition` adds to `conv`, a tensor of the same shape; None if it is no such addition."""
    if addition.target not in _ADDITIONS or addition.kwargs or len(addition.args) != 2:
        return None
    other = addition.args[1] if addition.args[0] is conv else addition.args[0]
    if not isinstance(other, fx.Node) or other is conv or other.meta["shape"] != conv.meta["shape"]:
        return None
    return other
