"""Adapters once channels are final: those that do nothing vanish, additions join their scatters."""

from __future__ import annotations

from torch import fx, nn

from adaptify.graph.adapter_rules import is_scatter
from adaptify.graph.adapters import ADAPTERS
from adaptify.graph.sites import ADDITIONS


def join_adapters(root: nn.Module, graph: fx.Graph) -> None:
    """Remove adapters that pass everything on from `graph`, and let scatters add to their stream themselves.

    An addition of the stream and of a scatter becomes one node, with the name of the addition.
    """
    for node in list(graph.nodes):
        if node.op != "call_module":
            continue
        module = root.get_submodule(str(node.target))
        if isinstance(module, ADAPTERS) and module.is_identity and len(node.args) == 1:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
    for node in list(graph.nodes):
        if node.target in ADDITIONS and "alpha" not in node.kwargs:
            _join(root, graph, node)


def _join(root: nn.Module, graph: fx.Graph, addition: fx.Node) -> None:
    operands = addition.all_input_nodes
    scatter = next((item for item in reversed(operands) if is_scatter(root, item)), None)
    if scatter is None or len(operands) != 2 or len(scatter.args) != 1 or len(scatter.users) != 1:
        return
    (stream,) = (item for item in operands if item is not scatter)
    with graph.inserting_before(addition):
        joined = graph.call_module(str(scatter.target), (scatter.args[0], stream))
    joined.meta = addition.meta
    addition.replace_all_uses_with(joined)
    graph.erase_node(addition)
    graph.erase_node(scatter)
