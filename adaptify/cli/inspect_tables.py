"""What `adaptify inspect` shows; it fits into 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import RenderableType
from rich.table import Table

from adaptify.cli.tables import table, titled, word
from adaptify.graph.sites import BlockSite
from adaptify.pipeline.inspect import Inspection, ModuleFacts
from adaptify.text import percent, quantity, shape, whole

_MOST_LINES = 60  # of the tree, unless a depth is given
_MOST_GROUPS = 12  # of blocks


def inspection(facts: Inspection, depth: int | None, every: bool) -> list[RenderableType]:
    """Return everything that is shown of a network.

    Args:
        facts: The network.
        depth: Levels of modules to show; None: as many as fit in 60 lines.
        every: List all cuts and all blocks, rather than outputs of modules and groups of blocks.
    """
    title = (
        f"{facts.architecture}: {quantity(facts.parameters)} parameters, {quantity(facts.macs)} MACs, "
        f"input {shape(facts.input_shape)}"
    )
    parts: list[RenderableType] = [*titled(title, _tree(facts.modules, depth)), "", *_exits(facts, every)]
    if facts.blocks:
        blocks = _every_block(facts) if every else _grouped_blocks(facts)
        parts += ["", *titled(f"Residual blocks ({len(facts.blocks)})", blocks)]
    return parts


def _tree(modules: Sequence[ModuleFacts], depth: int | None) -> Table:
    levels = [item.name.count(".") + 1 if item.name else 0 for item in modules]
    if depth is None:
        deep = range(max(levels), 1, -1)
        depth = next((level for level in deep if sum(own <= level for own in levels) <= _MOST_LINES), 1)
    rows = table(["module", "type", "output", "params", "MACs"], left=2)
    for item, level, following in zip(modules, levels, [*levels[1:], 0], strict=True):
        if level > depth:
            continue
        name = item.name.rpartition(".")[2] or "(the network)"
        hides = " ..." if level == depth and following > level else ""
        rows.add_row(
            word("  " * level + name + hides),
            word(item.type),
            "" if item.shape is None else shape(item.shape),
            quantity(item.parameters) if item.parameters else "",
            quantity(item.macs) if item.macs else "",
        )
    return rows


def _exits(facts: Inspection, every: bool) -> tuple[RenderableType, ...]:
    listed = [
        site
        for site in facts.exits
        if every or site.is_module_output or site.name in (*facts.default_exits, *facts.placed)
    ]
    rows = table(["", "exit site", "channels", "positions", "MACs before", "of full", ""], left=2)
    for site in listed:
        limit = facts.placed.get(site.name)
        placed = f"leaves at {limit:.3g}" if limit is not None else "never leaves"
        rows.add_row(
            "*" if site.name in facts.default_exits else "",
            word(site.name),
            whole(site.channels),
            whole(site.positions),
            quantity(site.macs_before),
            percent(site.macs_before / facts.macs),
            placed if site.name in facts.placed else "",
        )
    more = f"; {len(facts.exits) - len(listed)} more with --all" if len(listed) < len(facts.exits) else ""
    return titled(f"Exit sites (* by default{more})", rows)


def _every_block(facts: Inspection) -> Table:
    rows = table(["block", "MACs", "of full", "MACs in shortcut"])
    for block in facts.blocks:
        rows.add_row(
            word(block.name),
            quantity(block.macs),
            percent(block.macs / facts.macs),
            quantity(block.shortcut_macs),
        )
    return rows


def _grouped_blocks(facts: Inspection) -> Table:
    """The blocks by the modules they are in, as far down the tree as there are few of those."""
    rows = table(["in", "blocks", "MACs", "of full", "MACs in shortcuts"])

    def module(block: BlockSite, level: int) -> str:
        return ".".join(block.name.split(".")[:level])

    deepest = max(block.name.count(".") + 1 for block in facts.blocks)
    names = {level: {module(block, level) for block in facts.blocks} for level in range(1, deepest + 1)}
    level = max((level for level in names if len(names[level]) <= _MOST_GROUPS), default=1)
    for name, group in groupby(facts.blocks, lambda block: module(block, level)):
        blocks = list(group)
        macs = sum(block.macs for block in blocks)
        shortcuts = quantity(sum(block.shortcut_macs for block in blocks))
        rows.add_row(word(name), str(len(blocks)), quantity(macs), percent(macs / facts.macs), shortcuts)
    return rows
