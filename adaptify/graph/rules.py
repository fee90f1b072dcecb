"""What operations do to channels: keep them apart, merge them, move them, or mix them up.

A rule is `(propagation, node, *arguments, **keywords) -> labels`; `rule_tables` says which operation follows
which rule.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from adaptify.graph.labels import spread, varying_axes
from adaptify.graph.propagation import Propagation

SAME = frozenset(
    (
        "contiguous",
        "clone",
        "detach",
        "to",
        "float",
        "half",
        "double",
        "bfloat16",
        "type",
        "type_as",
        "cpu",
        "cuda",
    )
)
"""Methods that copy or convert: moves that move nothing."""


def move(propagation: Propagation, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    """An operation that only moves data: it is run on the labels themselves."""
    if not isinstance(args[0], Tensor) or any(isinstance(value, Tensor) for value in args[1:]):
        return propagation.refuse(node, f"{propagation.operation(node)} moves data by data", (args, kwargs))
    propagation.moves.add(node)
    return run_move(propagation.root, node, *args, **kwargs)


def run_move(root: nn.Module, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    """Run the operation of a data-moving `node` on other arguments."""
    if node.op == "call_module":
        return root.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        if node.target in SAME:
            return args[0]
        # Expanded labels cannot always be viewed where the values themselves can.
        name = "reshape" if node.target == "view" else str(node.target)
        return getattr(args[0], name)(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


# Layers with weights.


def convolution(propagation: Propagation, node: fx.Node, x: Tensor) -> Tensor:
    """Reads the channels of its input, writes new ones; groups go as a whole."""
    module: Any = propagation.root.get_submodule(str(node.target))
    if x.dim() != module.weight.dim():
        raise ValueError("images without a batch axis")
    reads = propagation.use("read", node, propagation.space.line(x, 1), module.weight)
    writes = propagation.produced(node, module.out_channels, module.weight)
    if module.groups > 1:
        # Whole groups are removed: then what remains is again a grouped convolution, and exact.
        reads, writes = reads.view(module.groups, -1), writes.view(module.groups, -1)
        propagation.space.merge(reads, reads[:, :1])
        propagation.space.merge(writes, reads[:, :1])
        writes = writes.flatten()
    return spread(writes, 1, node.meta["shape"])


def linear(propagation: Propagation, node: fx.Node, x: Tensor) -> Tensor:
    """Reads the last axis, writes new channels."""
    module: Any = propagation.root.get_submodule(str(node.target))
    propagation.use("read", node, propagation.space.line(x, -1), module.weight)
    writes = propagation.produced(node, module.out_features, module.weight)
    return spread(writes, -1, node.meta["shape"])


# Layers with a parameter for each channel.


def per_channel(propagation: Propagation, node: fx.Node, x: Tensor) -> Tensor:
    """A vector entry for each channel."""
    line = propagation.space.line(x, 1)
    propagation.use("carry", node, line, propagation.root.get_submodule(str(node.target)))
    return spread(line, 1, tuple(x.shape))


def prelu(propagation: Propagation, node: fx.Node, x: Tensor) -> Tensor:
    """One slope for all channels, or one for each."""
    module: Any = propagation.root.get_submodule(str(node.target))
    return x if module.num_parameters == 1 else per_channel(propagation, node, x)


def group_norm(propagation: Propagation, node: fx.Node, x: Tensor) -> Tensor:
    """Channels go in whole groups: the statistics are those of a group."""
    module: Any = propagation.root.get_submodule(str(node.target))
    if module.num_groups == 1:
        return _freeze(propagation, node, x, "normalises over all channels")
    rows = propagation.space.line(x, 1).view(module.num_groups, -1)
    # The statistics are those of a whole group: it goes as a whole.
    propagation.space.merge(rows, rows[:, :1])
    return per_channel(propagation, node, x)


def functional_batch_norm(
    propagation: Propagation,
    node: fx.Node,
    x: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    *_: Any,
    **__: Any,
) -> Tensor:
    """Batch norm whose vectors the graph itself holds."""
    line = propagation.space.line(x, 1)
    for vector in (running_mean, running_var, weight, bias):
        if isinstance(vector, Tensor):
            propagation.space.merge(vector, line)
    return spread(line, 1, tuple(x.shape))


# Operations without parameters.


def elementwise(propagation: Propagation, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    """Any number of operands, position by position: what meets is the same channel."""
    operands = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if not operands:
        raise TypeError("no tensor among the operands")
    result = operands[0]
    for operand in operands[1:]:
        result = _meet(propagation, node, result, operand)
    return result


def _meet(propagation: Propagation, node: fx.Node, first: Tensor, second: Tensor) -> Any:
    shape = torch.broadcast_shapes(first.shape, second.shape)
    # An operand with one value where the other has different channels is no channel of that axis.
    repeated_first = _repeats_over(first, second)
    repeated_second = _repeats_over(second, first)
    for operand, repeated in ((first, repeated_first), (second, repeated_second)):
        if repeated:
            propagation.space.freeze(operand, f"{node.meta['name']}: one value meets many channels")
    if repeated_first and repeated_second:
        return propagation.opaque(node, f"{node.meta['name']}: outer product of channels")
    if repeated_first:
        return second.expand(*shape)
    if not repeated_second:
        propagation.space.merge(first, second)
        # The same channels; labels of a parameter with positions would hide that these do not vary.
        first = min(first, second, key=lambda labels: len(varying_axes(labels)))
    return first.expand(*shape)


def _repeats_over(operand: Tensor, other: Tensor) -> bool:
    """Whether `operand` has length 1 along an axis on which the labels of `other` vary."""
    for axis in varying_axes(other):
        own = axis - other.dim() + operand.dim()
        if own < 0 or operand.shape[own] == 1:
            return True
    return False


def same(propagation: Propagation, node: fx.Node, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Copies and conversions: a move that moves nothing."""
    propagation.moves.add(node)
    return x


def window(propagation: Propagation, node: fx.Node, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Pooling, interpolation, spatial padding: every channel for itself, positions change."""
    if node.meta["shape"] is None:
        return propagation.refuse(node, "returns more than one tensor", x)
    return spread(propagation.space.line(x, 1), 1, node.meta["shape"])


def reduce(
    propagation: Propagation, node: fx.Node, x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any
) -> Any:
    """Mean, sum or maximum over positions."""
    axes = range(x.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    reduced = {axis % x.dim() for axis in axes}
    varying = set(varying_axes(x))
    if varying & reduced:
        if not varying - reduced:
            return _mixed(propagation, node, x)
        for axis in reduced:
            propagation.space.merge(x, x.narrow(axis, 0, 1))
    for axis in sorted(reduced, reverse=True):
        x = x.narrow(axis, 0, 1) if keepdim else x.select(axis, 0)
    return x


def along(propagation: Propagation, node: fx.Node, x: Tensor, dim: Any = None, *_: Any, **__: Any) -> Tensor:
    """Softmax and its like: values along `dim` depend on each other."""
    axes = range(x.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    return _normalised(propagation, node, x, {axis % x.dim() for axis in axes})


def along_module(propagation: Propagation, node: fx.Node, x: Tensor) -> Tensor:
    """As `along`, with the axis in the module."""
    module: Any = propagation.root.get_submodule(str(node.target))
    return along(propagation, node, x, getattr(module, "dim", None))


def layer_norm(
    propagation: Propagation, node: fx.Node, x: Tensor, shape: Any = None, *others: Any, **vectors: Any
) -> Tensor:
    """Layer norm is known in so far as it does nothing to channels outside its axes."""
    if node.op == "call_module":
        module: Any = propagation.root.get_submodule(str(node.target))
        shape = module.normalized_shape
    for vector in (*others, *vectors.values()):
        if isinstance(vector, Tensor):
            propagation.space.freeze(vector, f"{node.meta['name']}: belongs to a layer norm")
    return _normalised(propagation, node, x, {x.dim() - 1 - axis for axis in range(len(shape))})


def _normalised(propagation: Propagation, node: fx.Node, x: Tensor, axes: set[int]) -> Tensor:
    if axes & set(varying_axes(x)):
        return _freeze(propagation, node, x, "normalises over channels")
    return x


def _freeze(propagation: Propagation, node: fx.Node, x: Tensor, what: str) -> Tensor:
    propagation.space.freeze(x, f"{node.meta['name']}: {propagation.operation(node)} {what}")
    return x


def _mixed(propagation: Propagation, node: fx.Node, x: Tensor) -> Any:
    return propagation.refuse(node, f"{propagation.operation(node)} mixes channels", x)


def glu(propagation: Propagation, node: fx.Node, x: Tensor, dim: int = -1) -> Tensor:
    """The halves meet channel by channel."""
    if node.op == "call_module":
        module: Any = propagation.root.get_submodule(str(node.target))
        dim = module.dim
    first, second = x.chunk(2, dim)
    propagation.space.merge(first, second)
    return first


def cat(propagation: Propagation, node: fx.Node, tensors: Any, dim: int = 0, **_: Any) -> Tensor:
    """Channels one after the other; what lies across the parts is merged."""
    dim %= tensors[0].dim()
    # Only what varies is put together in memory.
    shape = node.meta["shape"]
    flat = [axis for axis in range(len(shape)) if axis != dim and all(t.stride(axis) == 0 for t in tensors)]
    narrow = list(tensors)
    for axis in flat:
        narrow = [t.narrow(axis, 0, 1) for t in narrow]
    result = torch.cat(narrow, dim)
    if any(axis != dim for t in narrow for axis in varying_axes(t)):
        # Channels lie across the parts: the parts must keep the same ones.
        propagation.space.merge(result, result.narrow(dim, 0, 1))
        result = result.narrow(dim, 0, 1)
    return result.expand(shape)


def stack(propagation: Propagation, node: fx.Node, tensors: Any, dim: int = 0) -> Tensor:
    """`cat` along a new axis."""
    dim %= tensors[0].dim() + 1
    return cat(propagation, node, [tensor.unsqueeze(dim) for tensor in tensors], dim)


def pad(
    propagation: Propagation, node: fx.Node, x: Tensor, pad: Any, mode: str = "constant", value: Any = None
) -> Tensor:
    """Padding of positions changes nothing; padding of channels adds channels that nobody computes."""
    if min(pad) < 0:
        raise ValueError("negative padding")
    varying = varying_axes(x)
    for step in range(len(pad) // 2):
        before, after = int(pad[2 * step]), int(pad[2 * step + 1])
        axis = x.dim() - 1 - step
        if not before and not after:
            continue
        if axis not in varying:
            shape = list(x.shape)
            shape[axis] += before + after
            x = x.narrow(axis, 0, 1).expand(shape)
            continue
        if mode != "constant" or len(varying) > 1:
            raise ValueError("channels are padded with values")
        line = propagation.space.line(x, axis)
        line = torch.cat([propagation.space.fresh(before), line, propagation.space.fresh(after)])
        shape = list(x.shape)
        shape[axis] = len(line)
        x = spread(line, axis, tuple(shape))
        propagation.pads[node] = (axis, before, after)
    return x


def index_select(propagation: Propagation, node: fx.Node, x: Tensor, dim: int, index: Any) -> Tensor:
    """Selection by a table that is part of the network (surgery itself leaves such tables behind)."""
    table = node.args[2] if len(node.args) > 2 else node.kwargs.get("index")
    if not isinstance(table, fx.Node) or table.op != "get_attr":
        raise TypeError("the index is computed")
    values = propagation.root.get_buffer(str(table.target))
    if values.is_meta:
        raise ValueError("the index has no values on the meta device")
    propagation.moves.add(node)
    return x.index_select(dim, values.cpu())


def getitem(propagation: Propagation, node: fx.Node, container: Any, index: Any) -> Any:
    """A piece of a tuple of tensors, or of a tensor."""
    if isinstance(container, Tensor):
        return move(propagation, node, container, index)
    propagation.moves.add(node)
    return container[index]


def inspect(propagation: Propagation, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Questions about a tensor that its labels answer as well."""
    if node.op == "call_method":
        return getattr(x, str(node.target))(*args)
    return getattr(x, *args)


def get_attribute(propagation: Propagation, node: fx.Node, x: Any, name: str) -> Any:
    """The shape of a tensor."""
    if name not in ("shape", "ndim", "device", "dtype", "requires_grad"):
        raise TypeError(f"attribute {name}")
    return inspect(propagation, node, x, name)
