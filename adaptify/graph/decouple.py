"""Adapters in front of and behind the branch of every residual block: blocks with channels of their own.

Channels of a stream x + f(x) are written by all blocks of a stage and read by all of them: without adapters
they can only be removed for all. Behind a gather, a block reads channels of its own, one for each of the
stream; behind a scatter, it adds channels of its own. Both pass everything on at first.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import fx, nn

from adaptify.errors import ModelError
from adaptify.graph.adapters import ChannelGather, ChannelScatter, adapter
from adaptify.graph.axes import channel_axis
from adaptify.graph.channels import Channels
from adaptify.graph.copying import share_copy
from adaptify.graph.cost import CostModel
from adaptify.graph.in_place import may_write
from adaptify.graph.network import GraphNetwork
from adaptify.graph.shapes import annotate_shapes
from adaptify.graph.sites import BlockSite, find_blocks, nodes_between
from adaptify.graph.trace import Traced

CONTAINER = "adapters"
"""Where the adapters are in the module tree, each under the name of its block."""


@dataclass(frozen=True)
class BlockAdapters:
    """The adapters of a residual block, by qualified name, None where there is none (any more).

    Attributes:
        block: Name of the block.
        gather: In front of the branch.
        scatter: Behind the branch.
        shortcut_gather: In front of the projection, if the shortcut is one.
        shortcut_scatter: Behind the projection.
    """

    block: str
    gather: str | None = None
    scatter: str | None = None
    shortcut_gather: str | None = None
    shortcut_scatter: str | None = None


@dataclass(frozen=True)
class BlockGroups:
    """Names of the channel groups at the ends of a residual block: mostly one each.

    Attributes:
        input: What the branch reads of the stream.
        output: What the branch adds to the stream.
        shortcut_input: What the projection reads.
        shortcut_output: What the projection adds.
    """

    input: tuple[str, ...]
    output: tuple[str, ...]
    shortcut_input: tuple[str, ...]
    shortcut_output: tuple[str, ...]


def decouple(traced: Traced, blocks: Iterable[BlockSite] | None = None) -> Traced:
    """Return the network with adapters around the residual blocks; it computes the same, bit for bit.

    Blocks whose channel axis is not known, or that write over their input, are left as they are, with a note.

    Args:
        traced: The network. Not modified; the result shares its tensors.
        blocks: Blocks of this network, by default all.

    Raises:
        ModelError: A block is not in this network.
    """
    blocks = tuple(find_blocks(traced, CostModel(traced)) if blocks is None else blocks)
    graph = copy.deepcopy(traced.graph)
    work = replace(traced, root=share_copy(traced.root), graph=graph)
    insertion = _Insertion(work)
    for block in blocks:
        insertion.add(block)
    annotate_shapes(work.root, graph, traced.input_shape)
    notes = (*traced.notes, *insertion.notes)
    return Traced(GraphNetwork(work.root, graph), graph, traced.input_shape, notes)


def find_adapters(traced: Traced) -> tuple[BlockAdapters, ...]:
    """Return the adapters of a decoupled network, in its order, also when some are gone."""
    found: dict[str, dict[str, str]] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module" and adapter(traced.root.get_submodule(str(node.target))) is not None:
            _, _, path = str(node.target).partition(".")
            block, _, role = path.rpartition(".")
            found.setdefault(block, {})[role] = str(node.target)
    return tuple(BlockAdapters(block, **roles) for block, roles in found.items())


def find_block_groups(channels: Channels) -> Mapping[str, BlockGroups]:
    """Return block name -> the groups at its ends, for every block of a decoupled network."""
    found: dict[tuple[str, str], list[str]] = {}
    for group in channels.groups:
        for member in group.members:
            found.setdefault((member.kind, member.target), []).append(group.name)

    def groups(kind: str, target: str | None) -> tuple[str, ...]:
        return tuple(found.get((kind, target), ())) if target is not None else ()

    return {
        item.block: BlockGroups(
            input=groups("write", item.gather),
            output=groups("read", item.scatter),
            shortcut_input=groups("write", item.shortcut_gather),
            shortcut_output=groups("read", item.shortcut_scatter),
        )
        for item in find_adapters(channels.traced)
    }


class _Insertion:
    """Adapters on their way into a graph.

    Attributes:
        notes: Which blocks were left as they are, and why.
    """

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.notes: list[str] = []
        self._nodes = {node.name: node for node in traced.graph.nodes}
        self._container = CONTAINER
        while hasattr(traced.root, self._container):
            self._container += "_"

    def add(self, block: BlockSite) -> None:
        """Insert the adapters of `block`.

        Raises:
            ModelError: There is no such block.
        """
        ends = (block.source, block.branch, block.shortcut, block.add)
        if any(name not in self._nodes for name in ends):
            raise ModelError(f"the network has no block '{block.name}'", "Find the blocks of this network.")
        source, branch, shortcut, addition = (self._nodes[name] for name in ends)
        ways = [("", branch)] + ([("shortcut_", shortcut)] if block.shortcut_macs else [])
        axes = {channel_axis(self.traced, node) for node in (source, branch)}
        if len(axes) != 1 or None in axes:
            self.notes.append(f"{block.name} keeps the channels of its stream: its channel axis is not known")
            return
        (axis,) = axes
        assert axis is not None
        path = addition.meta["path"]
        inside = [nodes_between(source, end) for _, end in ways]
        if any(_writes_over(self.traced.root, source, nodes) for nodes in inside):
            self.notes.append(f"{block.name} keeps the channels of its stream: it writes over its input")
            return
        for (prefix, end), nodes in zip(ways, inside, strict=True):
            gather = self._insert(block, f"{prefix}gather", ChannelGather, source, path, axis)
            for user in list(source.users):
                if user in nodes:
                    user.replace_input_with(source, gather)
            scatter = self._insert(block, f"{prefix}scatter", ChannelScatter, end, path, axis)
            addition.replace_input_with(end, scatter)

    def _insert(
        self, block: BlockSite, role: str, kind: type[nn.Module], source: fx.Node, path: str, axis: int
    ) -> fx.Node:
        target = f"{self._container}.{block.name}.{role}"
        _place(self.traced.root, target, kind(source.meta["shape"][axis], axis))
        graph = self.traced.graph
        with graph.inserting_after(source):
            node = graph.call_module(target, (source,))
        # For the names of sites it belongs to the block.
        node.meta = {"path": path, "name": target, "shape": source.meta["shape"]}
        return node


def _place(root: nn.Module, target: str, module: nn.Module) -> None:
    """Put `module` into `root` under a qualified name, with containers on the way to it."""
    *containers, name = target.split(".")
    for part in containers:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(name, module)


def _writes_over(root: nn.Module, source: fx.Node, inside: set[fx.Node]) -> bool:
    """Whether one of the nodes `inside` may change the tensor of `source`, which they get, in place.

    What layers with weights yield is a tensor of its own; anything else may be a view of what it got.
    """
    views = {source}
    for node in (node for node in source.graph.nodes if node in inside):
        if not views.intersection(node.all_input_nodes):
            continue
        module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if may_write(node, module):
            return True
        if module is None or next(module.parameters(), None) is None:
            views.add(node)
    return False
