"""A network as a row of pieces, each a network by itself: residual blocks, and what lies between them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import fx, nn

from adaptify.graph.leftovers import is_relu
from adaptify.graph.segments import Segment, cut
from adaptify.graph.sites import BlockSite
from adaptify.graph.trace import Traced


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
