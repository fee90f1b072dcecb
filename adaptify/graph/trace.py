"""From a module to an FX graph whose nodes know their shape and the module that made them.

The graph is executed against the module tree it was traced from (`program.compile_graph`), so parameters,
buffers and their names stay exactly what they were: nothing is copied into a new hierarchy.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from adaptify.errors import ModelError
from adaptify.graph.adapters import ADAPTERS
from adaptify.graph.copying import share_copy
from adaptify.graph.in_place import Proxy, read_what_was_written
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
        own_exits: Names of the nodes that a network with several outputs returned besides the last, from
            shallow to deep. They are in the graph, which returns the last one alone.
    """

    root: nn.Module
    graph: fx.Graph
    input_shape: tuple[int, int, int]
    notes: tuple[str, ...] = ()
    own_exits: tuple[str, ...] = ()

    def with_own_tensors(self) -> Traced:
        """Return the same network with copies of all its tensors: training it leaves this one alone."""
        return replace(self, root=share_copy(self.root, torch.Tensor.clone))

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
        model: Network that maps (N, C, H, W) to (N, M), or to a tuple or list of such (exits of its own, from
            shallow to deep). Not modified; the result shares its tensors.
        input_shape: (C, H, W).
        leaves: Qualified names of modules to keep whole.

    Raises:
        ModelError: The root module itself cannot be traced, or the input shape does not fit.
    """
    root = share_copy(model)
    notes: list[str] = []
    evaluation = _record(root, False, frozenset(leaves), notes)
    training = _record(root, True, evaluation.leaves, notes)
    differing = _differing_modules(evaluation, training)
    if differing:
        notes.append(_leaf_note(root, differing))
    whole = training.leaves | differing
    if whole != evaluation.leaves:
        evaluation = _record(root, False, whole, notes)
    if evaluation.behaviour[""] != training.behaviour[""]:
        training = _record(root, True, evaluation.leaves, notes)
        if not _follow_mode(evaluation.graph, training.graph):
            notes.append(
                "the network's own code differs in training (auxiliary outputs); traced as in evaluation"
            )
    for module, original in zip(root.modules(), model.modules(), strict=True):
        module.training = original.training
    graph = evaluation.graph
    _adopt_constants(root, evaluation.root, graph)
    _name_nodes(graph)
    annotate_shapes(root, graph, input_shape)
    read_what_was_written(root, graph)
    own_exits = _return_last(graph)
    _drop_checks(graph)
    return Traced(root, graph, input_shape, tuple(notes), own_exits)


@dataclass(frozen=True)
class _Recording:
    """What one run of the tracer found.

    Attributes:
        graph: The graph of the run.
        root: The copy of the network that was traced; it holds the constants.
        leaves: The modules that were kept whole.
        behaviour: For each module that was called ("" for the root): what its own code did, that is
            its operations and the calls of its children.
    """

    graph: fx.Graph
    root: nn.Module
    leaves: frozenset[str]
    behaviour: dict[str, list[str]]


class _Tracer(fx.Tracer):
    """FX tracer that keeps chosen modules whole and remembers what it called and where it failed."""

    def __init__(self, leaves: frozenset[str]) -> None:
        modules, functions = _untraceable_by_declaration()
        super().__init__(autowrap_modules=(math,), autowrap_functions=functions)
        self.leaves = leaves
        self.leaf_types = modules
        self.calls: dict[str, list[str]] = {"": []}
        self.failed_in: str | None = None

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Make the images the only input; other arguments of the network keep their defaults."""
        tensors = itertools.chain(self.root.named_parameters(), self.root.named_buffers())
        self.names = {id(tensor): name for name, tensor in tensors}
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """Return a proxy for a parameter or buffer: what is computed from them must not become a constant."""
        name = self.names.get(id(attr_val))
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return the value of a node, to be computed with."""
        return Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.leaves or isinstance(m, self.leaf_types):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path = self.path_of_module(m)
        caller = next(reversed(self.module_stack.values()))[0] if self.module_stack else ""
        self.calls[caller].append(f"call {path} {_outline((args, kwargs))}")
        self.calls.setdefault(path, [])
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed_in is None:
                self.failed_in = path
            raise


def _untraceable_by_declaration() -> tuple[tuple[type[nn.Module], ...], tuple[Callable[..., Any], ...]]:
    """Adapters, and the modules and functions that a loaded model library itself declares untraceable."""
    library = sys.modules.get("timm.models._features_fx") if "timm" in sys.modules else None
    if library is None:
        return ADAPTERS, ()
    return (*ADAPTERS, *library.get_notrace_modules()), tuple(library.get_notrace_functions())


def _record(root: nn.Module, training: bool, leaves: frozenset[str], notes: list[str]) -> _Recording:
    """Trace a copy of `root` in one mode.

    A module that cannot be traced joins the leaves, and the trace starts again.
    """
    root.train(training)
    while True:
        tracer = _Tracer(leaves)
        # Some modules keep what they computed, or change their buffers: all that happens to a copy.
        copied = share_copy(
            root, lambda tensor: tensor if isinstance(tensor, nn.Parameter) else tensor.clone()
        )
        try:
            graph = tracer.trace(copied)
        except Exception as error:
            failed = tracer.failed_in
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if failed is None or failed in leaves:
                raise ModelError(
                    f"{type(root).__name__} cannot be traced: {reason}",
                    "Move data-dependent control flow from the network's own forward into a submodule.",
                ) from error
            leaves |= {failed}
            notes.append(f"{failed} is kept whole: it cannot be traced ({reason})")
        else:
            return _Recording(graph, copied, leaves, _behaviour(graph, tracer.calls))


def _adopt_constants(root: nn.Module, traced_root: nn.Module, graph: fx.Graph) -> None:
    """Give `root` the constant tensors found in the code; they are not part of its state dict."""
    for node in graph.nodes:
        if node.op == "get_attr" and "." not in node.target and not hasattr(root, node.target):
            root.register_buffer(node.target, getattr(traced_root, node.target), persistent=False)


def _behaviour(graph: fx.Graph, calls: Mapping[str, list[str]]) -> dict[str, list[str]]:
    behaviour = {path: list(called) for path, called in calls.items()}
    for node in graph.nodes:
        # Which parameter is read where is no difference, and calls of modules are noted by the caller.
        if node.op not in ("call_module", "get_attr"):
            behaviour[_path(node)].append(f"{node.op} {node.target} {_outline((node.args, node.kwargs))}")
    return behaviour


def _outline(arguments: Any) -> str:
    """Arguments in words, without the names of values: those are numbered as they come."""
    return str(
        fx.node.map_aggregate(
            arguments,
            lambda value: "value" if isinstance(value, (fx.Node, fx.Proxy, torch.Tensor)) else value,
        )
    )


def _differing_modules(first: _Recording, second: _Recording) -> frozenset[str]:
    """Modules, other than the root, that were called in both runs and whose own code differed."""
    both = first.behaviour.keys() & second.behaviour.keys()
    return frozenset(path for path in both if path and first.behaviour[path] != second.behaviour[path])


def _follow_mode(evaluation: fx.Graph, training: fx.Graph) -> bool:
    """Let the graph `evaluation` read the mode of the root where the root's own code does.

    The root cannot be kept whole. Where it differs by nothing but flags, as in
    `F.dropout(x, training=self.training)`, each flag is replaced by the attribute.

    Returns:
        Whether the two graphs differ by flags alone; otherwise nothing is changed.
    """
    flags: list[tuple[fx.Node, int | str]] = []
    for ours, theirs in itertools.zip_longest(evaluation.nodes, training.nodes):
        if ours is None or theirs is None or (ours.op, ours.target) != (theirs.op, theirs.target):
            return False
        values, others = _arguments(ours), _arguments(theirs)
        if values.keys() != others.keys():
            return False
        for key, value in values.items():
            if value is False and others[key] is True:
                flags.append((ours, key))
            elif str(value) != str(others[key]):
                return False
    for node, key in flags:
        with evaluation.inserting_before(node):
            mode = evaluation.create_node("get_attr", "training")
        if isinstance(key, int):
            node.update_arg(key, mode)
        else:
            node.update_kwarg(key, mode)
    return True


def _arguments(node: fx.Node) -> dict[int | str, Any]:
    return {**dict(enumerate(node.args)), **dict(node.kwargs)}  # type: ignore[dict-item]


def _leaf_note(root: nn.Module, paths: frozenset[str]) -> str:
    kinds = sorted({type(root.get_submodule(path)).__name__ for path in paths})
    return f"{len(paths)} modules are kept whole, as they behave differently in training: {', '.join(kinds)}"


def _path(node: fx.Node) -> str:
    """Qualified name of the module whose code made `node` (for a leaf module: the module itself)."""
    stack = node.meta.get("nn_module_stack")
    return next(reversed(stack.values()))[0] if stack else ""


def _name_nodes(graph: fx.Graph) -> None:
    """Give each node its path and a qualified name that does not depend on the rest of the graph."""
    taken: set[str] = set()
    for node in graph.nodes:
        path = _path(node)
        node.meta["path"] = path
        if node.op == "call_module":
            name = path
        else:
            target = node.target
            operation = target if isinstance(target, str) else getattr(target, "__name__", node.name)
            name = f"{path}.{operation}" if path and node.op != "get_attr" else operation
        numbered = (f"{name}_{count}" for count in itertools.count(1))
        node.meta["name"] = next(free for free in itertools.chain([name], numbered) if free not in taken)
        taken.add(node.meta["name"])


def _return_last(graph: fx.Graph) -> tuple[str, ...]:
    """Let a graph that returns several logits (N, M) return the last ones; the names of the others' nodes."""
    (end,) = graph.find_nodes(op="output")
    returned = end.args[0]
    if not isinstance(returned, (tuple, list)) or len(returned) < 2:
        return ()
    if not all(isinstance(node, fx.Node) and node.meta["batched"] for node in returned):
        return ()
    shapes = {node.meta["shape"] for node in returned}
    if len(shapes) > 1 or len(shapes.pop()) != 2:
        return ()
    *exits, last = returned
    end.args = (last,)
    return tuple(node.name for node in exits)


def _drop_checks(graph: fx.Graph) -> None:
    """Remove what computes no tensor and is used by nobody: assertions on sizes and their operands."""
    for node in reversed(graph.nodes):
        if not node.users and node.meta["shape"] is None and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
