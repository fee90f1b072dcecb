"""Operations in place, as graphs show them and as they do not.

A graph says whose value a node reads, not that another node has written over it since: in `x + f(relu_(x))`
the sum reads what relu left of x. What closes f must not close relu with it, so that such readers are made
to say what they read.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn

_OPERATORS = frozenset(("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imod"))
_WRITES = _OPERATORS | {"setitem"}
_WRITTEN = "written"


class Proxy(fx.Proxy):
    """A value in a trace that also notes `x += y` and its like, which FX takes for `x = x + y`."""

    def _written(self, function: Any, other: Any) -> Any:
        result = self.tracer.create_proxy("call_function", function, (self, other), {})
        result.node.meta[_WRITTEN] = True
        return result

    def __iadd__(self, other: Any) -> Any:
        return self._written(operator.add, other)

    def __isub__(self, other: Any) -> Any:
        return self._written(operator.sub, other)

    def __imul__(self, other: Any) -> Any:
        return self._written(operator.mul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._written(operator.truediv, other)


def may_write(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node may change its operand.

    Args:
        node: The node.
        module: The module that it calls; None for other nodes.
    """
    if module is not None:
        return bool(getattr(module, "inplace", False))
    flags = (*node.args[1:], node.kwargs.get("inplace"))
    return _is_named_so(node) or _name(node) in _WRITES or any(flag is True for flag in flags)


def read_what_was_written(root: nn.Module, graph: fx.Graph) -> None:
    """Let nodes that come after an operation in place read its result instead of its operand.

    The network computes the same as before; shapes are known. (Operands that are views are left as they are.)
    """
    place = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        operand = node.args[0] if node.args else node.kwargs.get("input")
        # Numbers, such as sizes, are never written over: `n += 1` leaves what else was called n as it is.
        is_tensor = isinstance(operand, fx.Node) and operand.meta["shape"] is not None
        if not is_tensor or not _returns_its_operand(node, root):
            continue
        for user in [user for user in operand.users if place[user] > place[node]]:
            user.replace_input_with(operand, node)


def _returns_its_operand(node: fx.Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        # What others call `inplace` may be about something inside of the module.
        return type(module).__module__.startswith("torch.nn.") and may_write(node, module)
    if node.op not in ("call_function", "call_method"):
        return False
    noted = bool(node.meta.pop(_WRITTEN, False))  # from here on it is what it says, a sum of its own
    return noted or _is_named_so(node) or _name(node) in _OPERATORS or node.kwargs.get("inplace") is True


def _is_named_so(node: fx.Node) -> bool:
    name = _name(node)
    return name.endswith("_") and not name.endswith("__")


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
