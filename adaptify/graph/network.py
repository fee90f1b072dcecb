"""A graph and its module tree as one module that runs by itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from adaptify.graph.program import compile_graph


class GraphNetwork(nn.Module):
    """The module tree of a network, with a graph as its forward.

    Parameters, buffers and submodules keep their qualified names.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        """Take over everything `root` owns; `graph` is compiled, later changes of it have no effect."""
        super().__init__()
        self.__dict__.update(root.__dict__)
        self._program = compile_graph(graph)

    def forward(self, images: Tensor) -> Any:
        """Run the graph on images (N, C, H, W)."""
        return self._program(self, images)


def drop_unused(root: nn.Module, graph: fx.Graph) -> None:
    """Delete from `root` the modules, parameters and buffers that `graph` does not use."""
    used = {str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")}
    needed = {target.rsplit(".", depth)[0] for target in used for depth in range(target.count(".") + 1)}
    _drop(root, "", used, needed)


def _drop(module: nn.Module, prefix: str, used: set[str], needed: set[str]) -> None:
    for registry in (module._parameters, module._buffers, module._modules):
        for name in [name for name in registry if prefix + name not in needed]:
            del registry[name]
            module._non_persistent_buffers_set.discard(name)
    for name, child in module._modules.items():
        if child is not None and prefix + name not in used:
            _drop(child, f"{prefix}{name}.", used, needed)


def attach(root: nn.Module, folder: str, name: str, value: Tensor) -> str:
    """Put `value` into the submodule `folder` of `root` (made where missing); return its qualified name.

    Parameters become parameters, other tensors buffers. A taken name gets a number.
    """
    if not hasattr(root, folder):
        root.add_module(folder, nn.Module())
    holder = root.get_submodule(folder)
    base = name = name.replace(".", "_")
    count = 1
    while hasattr(holder, name):
        count += 1
        name = f"{base}_{count}"
    if isinstance(value, nn.Parameter):
        holder.register_parameter(name, value)
    else:
        holder.register_buffer(name, value)
    return f"{folder}.{name}"
