"""A network as a column of parts for a picture: residual blocks, and the modules between them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from torch import fx

from adaptify.files import write_text
from adaptify.graph.pieces import end_of
from adaptify.graph.sites import BlockSite, nodes_between
from adaptify.pipeline.inspect import GateFacts, Inspection
from adaptify.pipeline.prepare import Network
from adaptify.reports.plots.network import Mark, Part, network_picture
from adaptify.text import percent, quantity, shape, whole

_MOST_PARTS = 44


def draw(network: Network, facts: Inspection, file: Path) -> None:
    """Write a picture of a network as an SVG file, atomically.

    Args:
        network: The network.
        facts: What `inspect` found in it.
        file: The file.

    Raises:
        AdaptifyError: It cannot be written.
    """
    told = (
        f"{quantity(facts.parameters)} parameters, {quantity(facts.macs)} MACs, "
        f"input {shape(facts.input_shape)}"
    )
    write_text(file, network_picture(facts.architecture, told, parts_of(network, facts)))


def parts_of(network: Network, facts: Inspection) -> list[Part]:
    """Return the parts of a network in the order in which they run, with what can be, or is, decided there.

    Args:
        network: The network.
        facts: What `inspect` found in it.
    """
    traced, cost = network.traced, network.cost
    blocks = {block.name: block for block in facts.blocks}
    owner = _owners(network, blocks)
    parts: dict[str, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if node.op not in ("placeholder", "output", "get_attr"):
            parts.setdefault(owner[node], []).append(node)
    exits = _marks_of_exits(facts, {node.name: owner[node] for node in owner})
    gates = _marks_of_gates(facts, blocks)
    rows = []
    for name, nodes in parts.items():
        macs = sum(cost.macs[node.name] for node in nodes)
        if not macs and name not in exits:
            continue  # what only reshapes or adds
        sizes = next((n.meta["shape"] for n in reversed(nodes) if n.meta["shape"] is not None), None)
        rows.append(
            Part(
                name=name or facts.architecture.split(":")[-1],
                shape=shape(sizes[1:]) if sizes is not None else "",
                macs=macs,
                share=macs / cost.total if cost.total else 0.0,
                residual=name in blocks,
                exits=tuple(exits.get(name, ())),
                gates=tuple(gates.get(name, ())),
            )
        )
    return rows


def _owners(network: Network, blocks: Mapping[str, BlockSite]) -> dict[fx.Node, str]:
    """Node -> the residual block that it is in, or the module, as far down the tree as there is room."""
    traced = network.traced
    inside: dict[fx.Node, str] = {}
    for name, block in blocks.items():
        inside |= dict.fromkeys(nodes_between(traced.node(block.source), traced.node(block.add)), name)
        inside |= {traced.node(block.add): name, end_of(traced, block): name}
    paths = {node: str(node.meta.get("path") or node.meta.get("name") or "") for node in traced.graph.nodes}
    for level in (3, 2, 1):
        owner = {node: inside.get(node, ".".join(path.split(".")[:level])) for node, path in paths.items()}
        runs = [owner[node] for node in traced.graph.nodes if network.cost.macs[node.name]]
        # Where parts take turns, as scales do, the next best is the order in which they begin.
        if len(set(runs)) <= _MOST_PARTS and (level <= 2 or _is_row(runs)):
            return owner
    return owner


def _is_row(names: list[str]) -> bool:
    """Whether no part is taken up again after another one has begun."""
    changes = sum(one != other for one, other in pairwise(names))
    return changes < len(set(names))


def _marks_of_exits(facts: Inspection, owner: Mapping[str, str]) -> dict[str, list[Mark]]:
    marks: dict[str, list[Mark]] = {}
    for site in facts.exits:
        # What a network with gates of its own could have besides is another network.
        possible = () if facts.gates or facts.placed else facts.default_exits
        if site.name not in (*possible, *facts.placed):
            continue
        part = percent(site.macs_before / facts.macs)
        there = site.name in facts.placed or facts.own_exits
        limit = facts.placed.get(site.name)
        told = f"exit at {site.name}: {part} of the MACs"
        if facts.placed:
            told += f", leaves at {limit:.3g}" if limit is not None else ", never leaves"
        marks.setdefault(owner[site.node], []).append(Mark(told, there))
    return marks


def _marks_of_gates(facts: Inspection, blocks: Mapping[str, BlockSite]) -> dict[str, list[Mark]]:
    """At each block: the gates that it has; or, in a network without any, what skipping it would save."""
    if not facts.gates:
        return {
            name: [Mark(f"can be skipped: saves {percent(block.macs / facts.macs)}", False)]
            for name, block in blocks.items()
            if not facts.placed and not facts.own_exits
        }
    marks: dict[str, list[Mark]] = {}
    for gate in facts.gates:
        block = next((name for name in blocks if _is_in(gate, name)), None)
        told = f"skipped by a gate: {percent(gate.saves / facts.macs)}"
        if gate.position != "layer":
            told = f"{whole(gate.gates)} gates of {gate.position}: {percent(gate.saves / facts.macs)}"
        marks.setdefault(gate.name if block is None else block, []).append(Mark(told, True))
    return marks


def _is_in(gate: GateFacts, block: str) -> bool:
    return gate.name == block or gate.name.startswith(f"{block}.")
