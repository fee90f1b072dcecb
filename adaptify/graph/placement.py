"""Where exits go by default: at the ends of the stages of the network."""

from __future__ import annotations

from collections.abc import Sequence

from adaptify.graph.cost import CostModel
from adaptify.graph.sites import ExitSite
from adaptify.graph.trace import Traced

# A stage that is cheaper than this part of the network is no stage of its own (a stem, a projection),
# and an exit that leaves less than this part undone cannot pay.
_MIN_SHARE = 0.05
# A stem is a single layer; a stage has at least two.
_MIN_LAYERS = 2
# Positions shrink by 4 from stage to stage; unpadded convolutions shave off a few percent within one.
_SHRINK = 1.5


def default_exits(traced: Traced, cost: CostModel, sites: Sequence[ExitSite]) -> tuple[ExitSite, ...]:
    """Choose the sites at the stage ends, the last stage left out.

    A stage is a run of sites with the same number of positions. Its end is the last output of one of the
    network's outermost modules (a layer, a block), or else its last outermost site. A network that never
    shrinks (ViT) gets three exits that part its MACs evenly.
    """
    stages = _stages([site for site in sites if site.positions > 1])
    chosen: list[ExitSite] = []
    for stage in stages[:-1]:
        last = chosen[-1] if chosen else None
        # An end that comes too early is that of a stem; the stage itself then ends deeper in the tree.
        end = next((site for site in _ends(stage) if _is_worth_it(traced, cost, last, site)), None)
        if end is not None:
            chosen.append(end)
    return tuple(chosen) if chosen else _even(sites, cost.total)


def _stages(sites: Sequence[ExitSite]) -> list[list[ExitSite]]:
    stages: list[list[ExitSite]] = []
    for site in sites:
        if stages and stages[-1][-1].positions < site.positions * _SHRINK:
            stages[-1].append(site)
        else:
            stages.append([site])
    return stages


def _ends(stage: Sequence[ExitSite]) -> list[ExitSite]:
    """The last site of the stage at each depth of the module tree, outermost first."""
    candidates = [site for site in stage if site.is_module_output] or stage
    # The outermost count: an expansion inside a block is not the end of a stage.
    last = {site.name.count("."): site for site in candidates}
    return [last[depth] for depth in sorted(last)]


def _is_worth_it(traced: Traced, cost: CostModel, last: ExitSite | None, site: ExitSite) -> bool:
    """Whether `site` comes long enough after the exit `last`, and long enough before the end."""
    worth = site.macs_before - (last.macs_before if last else 0) >= _MIN_SHARE * cost.total
    pays = cost.total - site.macs_before >= _MIN_SHARE * cost.total
    return (
        worth
        and pays
        and _layers_between(traced, cost, last.node if last else None, site.node) >= _MIN_LAYERS
    )


def _layers_between(traced: Traced, cost: CostModel, start: str | None, end: str) -> int:
    """Number of nodes with MACs after `start` (None: the beginning), up to and including `end`."""
    names = [node.name for node in traced.graph.nodes]
    first = names.index(start) + 1 if start else 0
    return sum(cost.macs[name] > 0 for name in names[first : names.index(end) + 1])


def _even(sites: Sequence[ExitSite], total: int) -> tuple[ExitSite, ...]:
    candidates = [site for site in sites if site.is_module_output and site.macs_before < total] or list(sites)
    chosen: list[ExitSite] = []
    for part in (0.25, 0.5, 0.75):
        nearest = min(candidates, key=lambda site: abs(site.macs_before - part * total), default=None)
        if nearest is not None and nearest not in chosen:
            chosen.append(nearest)
    return tuple(chosen)
