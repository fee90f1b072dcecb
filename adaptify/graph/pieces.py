"""A network as a row of pieces, each a network by itself: residual blocks, and what lies between them.

The piece of a block can be cut once more, behind its first layer.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import fx, nn

from adaptify.graph.adapters import ChannelGather
from adaptify.graph.leftovers import is_relu
from adaptify.graph.segments import Segment, cut
from adaptify.graph.sites import BlockSite, nodes_between
from adaptify.graph.trace import Traced

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_GATHER = "adaptify_gather"  # where the rest of a block keeps what selects channels of the given value


@dataclass(frozen=True)
class Piece:
    """A part of a network that takes one tensor and yields one.

    Attributes:
        traced: The part; its graph has one input, and it shares the tensors of the network.
        block: The residual block that it is, with the ReLU behind it if there is one; else None.
    """

    traced: Traced
    block: BlockSite | None


def cut_at_blocks(
    traced: Traced, blocks: Sequence[BlockSite], also: Collection[str] = ()
) -> tuple[Piece, ...]:
    """Cut a network so that each of `blocks` (in the order of the network) is a piece; all others join.

    A piece takes what the piece before it yields; the first takes the images.

    Args:
        traced: The network.
        blocks: The blocks, in its order.
        also: Names of other nodes to cut after.

    Raises:
        ModelError: A size that depends on the batch crosses a cut.
    """
    nodes = {node.name: node for node in traced.graph.nodes}
    images = next(iter(traced.graph.nodes))
    found: dict[fx.Node, BlockSite | None] = {}  # where a piece ends -> the block that it is
    for block in blocks:
        if nodes[block.source] is not images:
            found.setdefault(nodes[block.source], None)
        found[end_of(traced, block)] = block
    for name in also:
        if nodes[name] is not images:
            found.setdefault(nodes[name], None)
    ends = [node for node in traced.graph.nodes if node in found]
    segments = cut(traced.graph, ends)
    owners = [*(found[end] for end in ends), None]
    return tuple(
        Piece(_as_network(traced, segment), block)
        for segment, block in zip(segments, owners, strict=True)
        if block is not None or _does_something(segment)
    )


def end_of(traced: Traced, block: BlockSite) -> fx.Node:
    """Return the addition of a block, or the ReLU that alone reads it."""
    addition = traced.node(block.add)
    (user, *others) = addition.users
    return user if not others and is_relu(traced.root, user) else addition


def without_branch(piece: Traced, block: BlockSite) -> Traced:
    """Return the piece of a block without the block's branch: what is left where it is skipped."""
    graph = copy.deepcopy(piece.graph)
    nodes = {node.name: node for node in graph.nodes}
    nodes[block.add].replace_all_uses_with(nodes[block.shortcut])
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
    return Traced(_subtree(piece.root, graph), graph, piece.input_shape)


def end_of_first_layer(piece: Traced, first: str) -> fx.Node | None:
    """Return the node that yields the value of a block's first layer, for each row of the batch.

    The BatchNorm and the ReLU that alone read it count as a part of it, as they run in one with it.

    Args:
        piece: The block.
        first: Name of the node of the layer.

    Returns:
        The node; None where the layer yields several tensors that are all used.
    """
    node = piece.node(first)
    while len(node.users) == 1:
        (user,) = node.users
        if node.meta["batched"] and not _runs_with_layer(piece.root, user):
            break
        node = user
    return node if node.meta["batched"] else None


def head_of(piece: Traced, end: fx.Node) -> Traced:
    """Return the part of a block that computes the value of `end` from what enters it."""
    (x,) = piece.graph.find_nodes(op="placeholder")
    inside = nodes_between(x, end)
    for node in piece.graph.nodes:
        if node is end:
            break
        # What nobody reads may change a tensor in place.
        if not node.users and inside.issuperset(node.all_input_nodes):
            inside.add(node)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in piece.graph.nodes:
        if node is x or node in inside or not inside.isdisjoint(node.users):
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[end])
    return Traced(_subtree(piece.root, graph), graph, piece.input_shape)


def tail_of(piece: Traced, end: fx.Node, gather: ChannelGather | None = None) -> Traced:
    """Return the rest of a block for those who have the value of `end`, as its second input.

    Args:
        piece: The block, or what surgery and masks have made of it.
        end: A node of the block as it was, whose value is given in full.
        gather: Selects the channels of that value that `piece` still has; None: all of them.
    """
    graph = copy.deepcopy(piece.graph)
    x = next(iter(graph.nodes))
    with graph.inserting_after(x):
        value = graph.placeholder("given")
    value.meta = dict(end.meta)
    # Where all of the branch has become a constant, the value is not needed.
    node = next((node for node in graph.nodes if node.name == end.name), None)
    if node is not None:
        before = nodes_between(x, node)
        node.replace_all_uses_with(value)
        for other in reversed(graph.nodes):
            if not other.users and (other in before or other.op == "get_attr"):
                graph.erase_node(other)
    root = _subtree(piece.root, graph)
    if node is not None and gather is not None:
        root.add_module(_GATHER, gather)
        with graph.inserting_after(value):
            selected = graph.call_module(_GATHER, (value,))
        selected.meta = dict(node.meta)
        value.replace_all_uses_with(selected, delete_user_cb=lambda user: user is not selected)
    return Traced(root, graph, piece.input_shape)


def _runs_with_layer(root: nn.Module, node: fx.Node) -> bool:
    """Whether `node` is what convolutions are fused with."""
    is_norm = node.op == "call_module" and isinstance(root.get_submodule(str(node.target)), _NORMS)
    return is_norm or is_relu(root, node)


def _does_something(segment: Segment) -> bool:
    return any(node.op not in ("placeholder", "output") for node in segment.graph.nodes)


def _as_network(traced: Traced, segment: Segment) -> Traced:
    graph = segment.graph
    first, *others = (node for node in graph.nodes if node.op == "placeholder")
    assert not others, "blocks begin and end where one tensor carries everything"
    output, whole = (next(iter(reversed(one.nodes))) for one in (graph, traced.graph))
    (value,) = output.args[0]
    output.args = (value,)
    output.meta = dict(whole.meta)
    return Traced(_subtree(traced.root, graph), graph, first.meta["shape"][1:])


def _subtree(root: nn.Module, graph: fx.Graph) -> nn.Module:
    """The modules, parameters and buffers that `graph` names, under the same names; tensors are shared."""
    tree = nn.Module()
    for node in graph.nodes:
        if node.op not in ("call_module", "get_attr"):
            continue
        *path, name = str(node.target).split(".")
        holder = tree
        for step in path:
            if step not in holder._modules:
                holder.add_module(step, nn.Module())
            holder = holder.get_submodule(step)
        if node.op == "call_module":
            holder._modules[name] = root.get_submodule(str(node.target))
        else:
            _copy_attribute(root.get_submodule(".".join(path)), holder, name)
    return tree.train(root.training)


def _copy_attribute(owner: nn.Module, holder: nn.Module, name: str) -> None:
    if name in owner._parameters:
        holder.register_parameter(name, owner._parameters[name])
    elif name in owner._buffers:
        holder.register_buffer(name, owner._buffers[name], name not in owner._non_persistent_buffers_set)
    else:
        setattr(holder, name, getattr(owner, name))
