"""From a module to an FX graph whose nodes know their shape and the module that made them.

The graph is executed against the module tree it was traced from (`program.compile_graph`), so parameters,
buffers and their names stay exactly what they were: nothing is copied into a new hierarchy.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from adaptify.errors import ModelError
from adaptify.graph.copying import share_copy
from adaptify.graph.shapes import annotate_shapes


@dataclass(frozen=True)
class Traced:
    """A network as a graph.

    Attributes:
        root: The module tree that owns parameters and buffers, under the checkpoint's own names.
        graph: One placeholder, one output. Each node carries `meta["path"]` (qualified name of the
            module whose code made it, "" for the root), `meta["name"]` (its stable qualified name)
            and what `shapes.annotate_shapes` found out about its value.
        input_shape: (C, H, W) of one input image.
        notes: What tracing had to decide, in words for the user.
    """

    root: nn.Module
    graph: fx.Graph
    input_shape: tuple[int, int, int]
    notes: tuple[str, ...] = ()

    def node(self, name: str) -> fx.Node:
        """Return the node called `name`.

        Raises:
            KeyError: There is none.
        """
        nodes: dict[str, fx.Node] = {node.name: node for node in self.graph.nodes}
        return nodes[name]


def trace(model: nn.Module, input_shape: tuple[int, int, int], *, leaves: Sequence[str] = ()) -> Traced:
    """Trace `model` into a graph that behaves as the model does in training and in evaluation.

    A graph records one run, so a module whose code reads `self.training` (stochastic depth, drop path)
    would be frozen in the mode it was traced in. Both modes are traced and compared; modules that
    differ, and modules with untraceable control flow, stay whole ("leaves").

    Args:
        model: Network that maps (N, C, H, W) to (N, M). Not modified; the result shares its tensors.
        input_shape: (C, H, W).
        leaves: Qualified names of modules to keep whole.

    Raises:
        ModelError: The root module itself cannot be traced, or the input shape does not fit.
    """
    root = share_copy(model)
    was_training = model.training
    kept = set(leaves)
    notes: list[str] = []
    evaluation = _trace_mode(root, False, kept, notes)
    training = _trace_mode(root, True, kept, notes)[0]
    differing = _differing_paths(evaluation[0], training)
    if "" in differing:
        differing.discard("")
        notes.append(
            "the network's own code differs in training (auxiliary outputs); traced as in evaluation"
        )
    if differing:
        notes.append(_leaf_note(root, differing))
        evaluation = _trace_mode(root, False, kept | differing, notes)
    root.train(was_training)
    graph, traced_root = evaluation
    _adopt_constants(root, traced_root, graph)
    _name_nodes(graph)
    annotate_shapes(root, graph, input_shape)
    _drop_checks(graph)
    return Traced(root, graph, input_shape, tuple(notes))


class _Tracer(fx.Tracer):
    """FX tracer that keeps chosen modules whole and remembers where it failed."""

    def __init__(self, leaves: set[str]) -> None:
        modules, functions = _untraceable_by_declaration()
        super().__init__(autowrap_modules=(math,), autowrap_functions=functions)
        self.leaves = leaves
        self.leaf_types = modules
        self.failed_in: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.leaves or isinstance(m, self.leaf_types):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed_in is None:
                self.failed_in = self.path_of_module(m)
            raise


def _untraceable_by_declaration() -> tuple[tuple[type[nn.Module], ...], tuple[Callable[..., Any], ...]]:
    """Modules and functions that a loaded model library itself declares untraceable."""
    library = sys.modules.get("timm.models._features_fx") if "timm" in sys.modules else None
    if library is None:
        return (), ()
    return tuple(library.get_notrace_modules()), tuple(library.get_notrace_functions())


def _trace_mode(
    root: nn.Module, training: bool, leaves: set[str], notes: list[str]
) -> tuple[fx.Graph, nn.Module]:
    """Trace a copy of `root` in one mode; return the graph and the copy.

    A module that cannot be traced joins `leaves`, and the trace starts again.
    """
    root.train(training)
    while True:
        tracer = _Tracer(leaves)
        try:
            # Some modules cache what they computed; proxies must not stay behind in the result.
            traced_root = share_copy(root)
            return tracer.trace(traced_root), traced_root
        except Exception as error:
            failed = tracer.failed_in
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if failed is None or failed in leaves:
                raise ModelError(
                    f"{type(root).__name__} cannot be traced: {reason}",
                    "Move data-dependent control flow from the network's own forward into a submodule.",
                ) from error
            leaves.add(failed)
            notes.append(f"{failed} is kept whole: it cannot be traced ({reason})")


def _adopt_constants(root: nn.Module, traced_root: nn.Module, graph: fx.Graph) -> None:
    """Give `root` the constant tensors found in the code; they are not part of its state dict."""
    for node in graph.nodes:
        if node.op == "get_attr" and "." not in node.target and not hasattr(root, node.target):
            root.register_buffer(node.target, getattr(traced_root, node.target), persistent=False)


def _differing_paths(first: fx.Graph, second: fx.Graph) -> set[str]:
    """Paths of the modules whose own operations are not the same in both graphs."""
    ours, theirs = _operations_by_path(first), _operations_by_path(second)
    return {path for path in ours.keys() & theirs.keys() if ours[path] != theirs[path]}


def _operations_by_path(graph: fx.Graph) -> dict[str, list[str]]:
    operations: dict[str, list[str]] = {}
    for node in graph.nodes:
        # Nodes are numbered as they come, so arguments are compared by everything but their names.
        arguments = fx.map_arg((node.args, node.kwargs), lambda _: "node")
        operations.setdefault(_path(node), []).append(f"{node.op} {node.target} {arguments}")
    return operations


def _leaf_note(root: nn.Module, paths: set[str]) -> str:
    kinds = sorted({type(root.get_submodule(path)).__name__ for path in paths})
    return f"{len(paths)} modules are kept whole, as they behave differently in training: {', '.join(kinds)}"


def _path(node: fx.Node) -> str:
    """Qualified name of the module whose code made `node` (for a leaf module: the module itself)."""
    stack = node.meta.get("nn_module_stack")
    return next(reversed(stack.values()))[0] if stack else ""


def _name_nodes(graph: fx.Graph) -> None:
    """Give each node its path and a qualified name that does not depend on the rest of the graph."""
    seen: dict[str, int] = {}
    for node in graph.nodes:
        path = _path(node)
        node.meta["path"] = path
        if node.op == "call_module":
            name = path
        else:
            target = node.target
            operation = target if isinstance(target, str) else getattr(target, "__name__", node.name)
            name = f"{path}.{operation}" if path and node.op != "get_attr" else operation
        count = seen.get(name, 0)
        seen[name] = count + 1
        node.meta["name"] = f"{name}_{count}" if count else name


def _drop_checks(graph: fx.Graph) -> None:
    """Remove what computes no tensor and is used by nobody: assertions on sizes and their operands."""
    for node in reversed(graph.nodes):
        if not node.users and node.meta["shape"] is None and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
