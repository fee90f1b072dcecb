"""Sites: the places of a network where a gate can go, found in its graph."""

from __future__ import annotations

import fnmatch
import itertools
import math
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from adaptify.errors import UsageError, did_you_mean
from adaptify.graph.axes import channel_axis
from adaptify.graph.cost import CostModel
from adaptify.graph.cuts import Cut, find_cuts
from adaptify.graph.trace import Traced


@dataclass(frozen=True)
class ExitSite:
    """A place where a sample can leave: one tensor carries all that the rest of the network needs.

    Attributes:
        name: Qualified name: the outermost module whose output the tensor is, or else the operation.
        aliases: Other names of the same tensor.
        node: Name of the graph node that yields it.
        channels: Number of channels C.
        channel_axis: 1 for (N, C, H, W), -1 for (N, H, W, C) and (N, L, C).
        positions: Number of spatial positions (H * W) or tokens (L).
        macs_before: MACs that are spent up to here.
        is_module_output: Whether it is the output of a module that has submodules.
        is_map: Whether it is a feature map (N, C, H, W).
    """

    name: str
    aliases: tuple[str, ...]
    node: str
    channels: int
    channel_axis: int
    positions: int
    macs_before: int
    is_module_output: bool
    is_map: bool = False


@dataclass(frozen=True)
class BlockSite:
    """A residual block x + f(x).

    Attributes:
        name: Qualified name of the module that holds the block.
        source: Name of the node that yields x.
        branch: Name of the node that yields f(x).
        shortcut: Name of the node that is added to f(x): `source` itself, or a projection of it.
        add: Name of the addition.
        macs: MACs of f.
        shortcut_macs: MACs of the projection (0 for an identity).
    """

    name: str
    source: str
    branch: str
    shortcut: str
    add: str
    macs: int
    shortcut_macs: int


ADDITIONS = frozenset((operator.add, operator.iadd, torch.add, "add", "add_"))
"""Targets of nodes that add two tensors."""


def find_exits(traced: Traced, cost: CostModel) -> tuple[ExitSite, ...]:
    """Return every place where samples can leave, in the order of the network.

    Left out are cuts before any computation and cuts whose channel axis cannot be told from the graph.
    """
    names = _output_names(traced.graph)
    nodes = list(traced.graph.nodes)
    spent = 0
    start = 0
    sites = []
    for cut in find_cuts(traced):
        spent += cost.of(nodes[start : cut.position + 1])
        start = cut.position + 1
        axis = channel_axis(traced, cut.node)
        if spent == 0 or axis is None:
            continue
        shape = cut.node.meta["shape"]
        channels = shape[axis]
        containers = names.get(cut.node, [])
        name, *aliases = [*containers, cut.node.meta["name"]]
        sites.append(
            ExitSite(
                name=name,
                aliases=tuple(alias for alias in aliases if alias != name),
                node=cut.node.name,
                channels=channels,
                channel_axis=axis,
                positions=math.prod(shape[1:]) // channels,
                macs_before=spent,
                is_module_output=any(_has_submodules(traced, path) for path in containers),
                is_map=len(shape) == 4 and axis == 1,
            )
        )
    return tuple(sites)


def find_blocks(traced: Traced, cost: CostModel) -> tuple[BlockSite, ...]:
    """Return the residual blocks of the network, in its order.

    A block lies between two neighbouring cuts: all of it is computed from x, and an addition ends it.
    """
    cuts = find_cuts(traced)
    blocks = []
    for before, after in itertools.pairwise(cuts):
        block = _residual_block(before, after, cost)
        if block is not None:
            blocks.append(block)
    return tuple(_with_unique_names(traced, blocks))


def select_sites(sites: Sequence[ExitSite], patterns: Iterable[str]) -> tuple[ExitSite, ...]:
    """Return the sites whose name or alias is one of `patterns` (names or globs), in network order.

    Raises:
        UsageError: A pattern matches no site.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        matching = [site for site in sites if _matches(site, pattern)]
        if not matching:
            known = [name for site in sites for name in (site.name, *site.aliases)]
            raise UsageError(
                f"no exit site is called '{pattern}'{did_you_mean(pattern, known)}",
                f"Sites are, for example: {', '.join(site.name for site in sites if site.is_module_output)}"
                if any(site.is_module_output for site in sites)
                else f"Sites are: {', '.join(site.name for site in sites)}",
            )
        chosen.update(site.node for site in matching)
    return tuple(site for site in sites if site.node in chosen)


def _matches(site: ExitSite, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in (site.name, *site.aliases))


def _has_submodules(traced: Traced, path: str) -> bool:
    try:
        module = traced.root.get_submodule(path)
    except AttributeError:  # surgery drops modules that own nothing, and their names stay in the graph
        return False
    return next(module.children(), None) is not None


def prefixes(path: str) -> list[str]:
    """All module paths that contain `path`, outermost first, itself included; the root is left out."""
    parts = path.split(".") if path else []
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _output_names(graph: fx.Graph) -> dict[fx.Node, list[str]]:
    """For each node: the modules whose only output it is, outermost first."""
    outputs: dict[str, set[fx.Node]] = {}
    for node in graph.nodes:
        for prefix in prefixes(node.meta["path"]):
            if any(prefix not in prefixes(user.meta["path"]) for user in node.users):
                outputs.setdefault(prefix, set()).add(node)
    names: dict[fx.Node, list[str]] = {}
    for path in sorted(outputs, key=len):
        if len(outputs[path]) == 1:
            names.setdefault(next(iter(outputs[path])), []).append(path)
    return names


def _residual_block(before: Cut, after: Cut, cost: CostModel) -> BlockSite | None:
    addition = after.node
    if addition.target not in ADDITIONS:
        return None
    operands = addition.all_input_nodes
    if len(operands) != 2 or "alpha" in addition.kwargs:
        return None
    if any(operand.meta["shape"] != addition.meta["shape"] for operand in operands):
        return None
    paths = [nodes_between(before.node, operand) for operand in operands]
    if paths[0] & paths[1]:
        return None
    # The shortcut is the identity, or else the cheaper of the two paths.
    ranks = [(operand is before.node, -cost.of(path)) for operand, path in zip(operands, paths, strict=True)]
    branch, shortcut = (0, 1) if ranks[0] < ranks[1] else (1, 0)
    if cost.of(paths[branch]) == 0:
        return None
    return BlockSite(
        name=_common_path([*paths[branch], addition]),
        source=before.node.name,
        branch=operands[branch].name,
        shortcut=operands[shortcut].name,
        add=addition.name,
        macs=cost.of(paths[branch]),
        shortcut_macs=cost.of(paths[shortcut]),
    )


def nodes_between(source: fx.Node, end: fx.Node) -> set[fx.Node]:
    """Return the nodes on which `end` depends, itself included, as far up as `source` (excluded)."""
    found: set[fx.Node] = set()
    pending = [end]
    while pending:
        node = pending.pop()
        if node is not source and node not in found and node.op != "get_attr":
            found.add(node)
            pending.extend(node.all_input_nodes)
    return found


def first_layer(traced: Traced, block: BlockSite, cost: CostModel) -> fx.Node:
    """Return the first node of the branch, in the order of the graph, that costs MACs."""
    inside = nodes_between(traced.node(block.source), traced.node(block.branch))
    layers: Iterator[fx.Node] = (node for node in traced.graph.nodes if cost.macs[node.name])
    return next(node for node in layers if node in inside)


def _common_path(nodes: Iterable[fx.Node]) -> str:
    common: list[str] | None = None
    for node in nodes:
        paths = prefixes(node.meta["path"])
        common = paths if common is None else [path for path in common if path in paths]
    return common[-1] if common else ""


def _with_unique_names(traced: Traced, blocks: Sequence[BlockSite]) -> list[BlockSite]:
    """Tell the blocks of one module apart (attention and MLP of a transformer layer) by their additions."""
    count = Counter(block.name for block in blocks)
    return [
        block
        if block.name and count[block.name] == 1
        else replace(block, name=traced.node(block.add).meta["name"])
        for block in blocks
    ]
