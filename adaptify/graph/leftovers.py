"""What surgery leaves in a graph and nobody needs: adapters that pass everything on, a ReLU of a ReLU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import fx, nn

from adaptify.graph.adapter_rules import is_scatter
from adaptify.graph.adapters import adapter
from adaptify.graph.sites import ADDITIONS

_RELUS = frozenset((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"))


def tidy(root: nn.Module, graph: fx.Graph) -> None:
    """Remove from `graph` what computes nothing new; it yields the same.

    Adapters that pass everything on vanish. An addition of a stream and of a scatter becomes one node, a
    scatter with two operands under the name of the addition. Where a block is gone, the ReLU behind it
    repeats the one before it: in place, it would write over what that needs for its gradient.
    """
    for node in list(graph.nodes):
        if _passes_on(root, node) or (is_relu(root, node) and is_relu(root, node.all_input_nodes[0])):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
        elif node.target in ADDITIONS and "alpha" not in node.kwargs:
            _join(root, graph, node)


def is_relu(root: nn.Module, node: fx.Node) -> bool:
    """Whether `node` is a ReLU."""
    if node.op == "call_module":
        return type(root.get_submodule(str(node.target))) is nn.ReLU
    return node.op in ("call_function", "call_method") and node.target in _RELUS


def _passes_on(root: nn.Module, node: fx.Node) -> bool:
    module = adapter(root.get_submodule(str(node.target))) if node.op == "call_module" else None
    return module is not None and module.is_identity and len(node.args) == 1


def _join(root: nn.Module, graph: fx.Graph, addition: fx.Node) -> None:
    operands = addition.all_input_nodes
    scatter = next((item for item in reversed(operands) if is_scatter(root, item)), None)
    if scatter is None or len(operands) != 2 or len(scatter.args) != 1 or len(scatter.users) != 1:
        return
    (stream,) = (item for item in operands if item is not scatter)
    if stream.op == "get_attr":  # a constant, which may be smaller: it is the stream that brings the size
        return
    with graph.inserting_before(addition):
        joined = graph.call_module(str(scatter.target), (scatter.args[0], stream))
    joined.meta = addition.meta
    addition.replace_all_uses_with(joined)
    graph.erase_node(addition)
    graph.erase_node(scatter)
