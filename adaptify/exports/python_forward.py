"""A graph as the lines of a `forward`, with few names: what is no longer needed gives its name away.

So memory is freed as the network runs, and the stream of a residual network is called `x` all the way.
"""

from __future__ import annotations

import inspect
import itertools
import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from adaptify.errors import UsageError
from adaptify.exports.python_layers import is_known, is_plain, literal, quoted
from adaptify.text import printable

_NAMES = ("x", "y", "z", "u", "v", "w", "a", "b", "c", "d")
_SPACES: Mapping[str, Any] = {"F": F, "torch": torch, "math": math, "operator": operator}
_INFIX = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.truediv: "/",
    operator.floordiv: "//",
    operator.mod: "%",
    operator.matmul: "@",
}
OTHER_FORMATS = "Use --format onnx or pt2."


def inline(root: nn.Module, graph: fx.Graph) -> fx.Graph:
    """Return `graph` with the modules that are not PyTorch's own written out as what they do in evaluation.

    Raises:
        UsageError: One of them cannot be.
    """
    result = fx.Graph()
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if module is None or is_known(module):
            values[node] = result.node_copy(node, values.__getitem__)
        elif _passes_on(module, node):
            values[node] = values[node.all_input_nodes[0]]
        else:
            values[node] = _write_out(module, node, result, values)
    return result


def _passes_on(module: nn.Module, node: fx.Node) -> bool:
    """Whether a module yields the very tensor that it gets, as stochastic depth does in evaluation."""
    if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        return False
    shape = node.args[0].meta.get("shape")
    if shape is None or next(module.parameters(), None) is not None:
        return False
    try:
        return all(module.eval()(x) is x for x in (torch.zeros(shape), torch.ones(shape), -torch.ones(shape)))
    except Exception:
        return False


def _write_out(module: nn.Module, node: fx.Node, result: fx.Graph, values: dict[fx.Node, Any]) -> Any:
    try:
        inner = fx.Tracer().trace(module.eval())
    except Exception as error:
        raise _unwritable(type(module).__name__) from error
    given = iter(node.args)
    own: dict[fx.Node, Any] = {}
    for step in inner.nodes:
        if step.op == "placeholder":
            argument = next(given, step.args[0] if step.args else None)
            argument = node.kwargs.get(str(step.target), argument)
            own[step] = fx.node.map_arg(argument, values.__getitem__)
        elif step.op == "output":
            return fx.node.map_arg(step.args[0], own.__getitem__)
        else:
            own[step] = result.node_copy(step, own.__getitem__)
            own[step].meta["path"] = node.meta.get("path", "")
            if step.op in ("call_module", "get_attr"):
                own[step].target = f"{node.target}.{step.target}"
    raise _unwritable(type(module).__name__)


def forward_lines(graph: fx.Graph) -> Iterator[str]:
    """The lines of a method `forward(self, x)` that runs `graph`, and comments that say where it is.

    Raises:
        UsageError: An operation has no name that a file could call it by.
    """
    last_use = {source: node for node in graph.nodes for source in node.all_input_nodes}
    names: dict[fx.Node, str] = {}
    part = None
    for node in graph.nodes:
        if node.op == "placeholder":
            names[node] = _NAMES[0]
            continue
        if node.op == "output":
            yield f"return {_format(node.args[0], names)}"
            return
        expression = _expression(node, names)
        for source in dict.fromkeys(node.all_input_nodes):
            if last_use[source] is node:
                names.pop(source)  # its name is free for the result
        here = _part(node)
        if here != part and here is not None:
            yield f"# {printable(here)}"
            part = here
        if node in last_use:
            names[node] = _free_name(set(names.values()))
            yield f"{names[node]} = {expression}"
        else:
            yield expression


def attribute(path: str) -> str:
    """What a module or parameter is called from within the network."""
    words = ["self"]
    for name in path.split("."):
        words.append(f".{name}" if is_plain(name) else f"[{name if name.isdecimal() else quoted(name)}]")
    return "".join(words)


def _free_name(taken: set[str]) -> str:
    numbered = (f"t{count}" for count in itertools.count(1))
    return next(name for name in itertools.chain(_NAMES, numbered) if name not in taken)


def _part(node: fx.Node) -> str | None:
    """The part of the network that `node` is in, for a comment: what a layer is in, or its own name."""
    path = str(node.meta.get("path", ""))
    if node.op == "call_module" and path == str(node.target):
        path = path.rpartition(".")[0]
    return path or None


def _expression(node: fx.Node, names: Mapping[fx.Node, str]) -> str:
    if node.op == "get_attr":
        return attribute(str(node.target))
    words = [_format(argument, names) for argument in node.args]
    words += [f"{name}={_format(argument, names)}" for name, argument in _said(node).items()]
    if node.op == "call_module":
        return f"{attribute(str(node.target))}({', '.join(words)})"
    if node.op == "call_method":
        return f"{words[0]}.{node.target}({', '.join(words[1:])})"
    if node.target in _INFIX and len(words) == 2 and not node.kwargs:
        return f"{words[0]} {_INFIX[node.target]} {words[1]}"
    if node.target is operator.getitem:
        return f"{words[0]}[{_index(node.args[1], names)}]"
    if node.target is getattr and isinstance(node.args[1], str):
        return f"{words[0]}.{node.args[1]}"
    return f"{_called(node.target)}({', '.join(words)})"


def _said(node: fx.Node) -> Mapping[str, Any]:
    """The named arguments of `node` that are not what they are without being named."""
    try:
        known = inspect.signature(node.target).parameters  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a method, or written in C
        return node.kwargs
    return {
        name: value
        for name, value in node.kwargs.items()
        if isinstance(value, fx.Node) or name not in known or value != known[name].default
    }


def _called(function: Any) -> str:
    name = getattr(function, "__name__", "")
    for space, module in _SPACES.items():
        if name and getattr(module, name, None) is function:
            return f"{space}.{name}"
    raise _unwritable(name or str(function))


def _format(value: Any, names: Mapping[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return names[value]
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        inner = ", ".join(_format(item, names) for item in value)
        if isinstance(value, list):
            return f"[{inner}]"
        return f"({inner}{',' if len(value) == 1 else ''})"
    if isinstance(value, slice):
        return f"slice({', '.join(_format(item, names) for item in (value.start, value.stop, value.step))})"
    try:
        return literal(value)
    except ValueError as error:
        raise _unwritable(str(value)) from error


def _index(value: Any, names: Mapping[fx.Node, str]) -> str:
    if isinstance(value, (tuple, list)) and value:
        return ", ".join(_index(item, names) for item in value)
    if isinstance(value, slice):
        start, stop, step = (
            "" if item is None else _format(item, names) for item in (value.start, value.stop, value.step)
        )
        return f"{start}:{stop}" + (f":{step}" if step else "")
    return _format(value, names)


def _unwritable(what: str) -> UsageError:
    return UsageError(
        f"{what} cannot be written as Python that needs PyTorch alone", f"{OTHER_FORMATS} They hold the same."
    )
