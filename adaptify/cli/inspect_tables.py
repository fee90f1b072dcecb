"""What `adaptify inspect` shows; it fits into 80 columns."""

from __future__ import annotations

from itertools import groupby

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from adaptify.cli.module_tree import module_tree
from adaptify.cli.tables import table, titled, word
from adaptify.graph.sites import BlockSite
from adaptify.pipeline.inspect import Inspection
from adaptify.text import percent, printable, quantity, shape, whole

_MOST_LINES = 60  # of the tree, unless a depth is given
_MOST_GROUPS = 12  # of blocks
_MOST_CHANNELS = 8  # groups of channels


def inspection(facts: Inspection, depth: int | None, every: bool) -> list[RenderableType]:
    """Return everything that is shown of a network.

    Args:
        facts: The network.
        depth: Levels of modules to show; None: as many as fit in 60 lines.
        every: List all cuts, blocks, channels and modules, rather than the outputs of modules, groups of
            blocks, the dearest channels, and of modules that are the same the first.
    """
    title = (
        f"{facts.architecture}: {quantity(facts.parameters)} parameters, {quantity(facts.macs)} MACs, "
        f"input {shape(facts.input_shape)}"
    )
    parts: list[RenderableType] = [
        *titled(title, module_tree(facts.modules, depth, _MOST_LINES, fold=not every)),
        "",
        *_exits(facts, every),
    ]
    if facts.blocks:
        blocks = _every_block(facts) if every else _grouped_blocks(facts)
        parts += ["", *titled(f"Residual blocks ({len(facts.blocks)})", blocks)]
    if facts.groups:
        parts += ["", *_groups(facts, every)]
    if facts.gates:
        parts += ["", *titled(f"Gates that it has ({len(facts.gates)} sites)", _gates(facts))]
    return [*parts, "", *_methods(facts)]


def _exits(facts: Inspection, every: bool) -> tuple[RenderableType, ...]:
    listed = [
        site
        for site in facts.exits
        if every or site.is_module_output or site.name in (*facts.default_exits, *facts.placed)
    ]
    rows = table(["", "exit site", "channels", "positions", "MACs before", "can save", ""], left=2)
    for site in listed:
        limit = facts.placed.get(site.name)
        placed = f"leaves at {limit:.3g}" if limit is not None else "never leaves"
        rows.add_row(
            "*" if site.name in facts.default_exits else "",
            word(site.name),
            whole(site.channels),
            whole(site.positions),
            quantity(site.macs_before),
            percent(1 - site.macs_before / facts.macs),
            placed if site.name in facts.placed else "",
        )
    more = f"; {len(facts.exits) - len(listed)} more with --all" if len(listed) < len(facts.exits) else ""
    return titled(f"Exit sites (* by default{more})", rows)


def _groups(facts: Inspection, every: bool) -> tuple[RenderableType, ...]:
    """The channels that save the most, in the order of the network."""
    most = sorted(facts.groups, key=lambda group: -group.saves)[:_MOST_CHANNELS]
    shown = facts.groups if every else [group for group in facts.groups if group in most]
    rows = table(["channels of", "number", "MACs", "can save"])
    for group in shown:
        rows.add_row(
            word(group.name), whole(group.channels), quantity(group.saves), percent(group.saves / facts.macs)
        )
    some = f"the {len(shown)} dearest of {len(facts.groups)} groups; all with --all"
    said = some if len(shown) < len(facts.groups) else f"{len(facts.groups)} groups"
    return titled(f"Channels ({said})", rows)


def _gates(facts: Inspection) -> Table:
    rows = table(["gates at", "position", "gates", "MACs", "can save"], left=2)
    for gate in facts.gates:
        saves = quantity(gate.saves), percent(gate.saves / facts.macs)
        rows.add_row(word(gate.name), word(gate.position), whole(gate.gates), *saves)
    return rows


def _methods(facts: Inspection) -> tuple[RenderableType, ...]:
    """The methods that suit the network, and below why the others do not."""
    rows = table(["method", "command", "decides about", "least MACs of a sample"], left=3)
    lines = []
    for item in facts.methods:
        if item.least is not None:
            rows.add_row(word(item.method), item.command, word(item.places), percent(item.least))
        else:
            lines.append(Text(f"{item.method}: {printable(item.reason or '')}"))
            lines.append(Text(f"  {printable(item.hint or '')}", style="dim"))
    parts: list[RenderableType] = list(titled("Methods that suit it, with their own options", rows))
    if lines:
        parts += ["", Text("Methods that do not", style="bold"), *lines]
    return tuple(parts)


def _every_block(facts: Inspection) -> Table:
    rows = table(["block", "MACs", "can save", "MACs in shortcut"])
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
    rows = table(["in", "blocks", "MACs", "can save", "MACs in shortcuts"])

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
