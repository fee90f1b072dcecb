"""A network without decisions as a Python file of its own, which needs PyTorch and its weights beside it."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from adaptify.errors import UsageError
from adaptify.exports.python_forward import OTHER_FORMATS, forward_lines, inline
from adaptify.exports.python_layers import GATHER, SCATTER, constructor, indices, is_plain, quoted
from adaptify.graph.adapters import ChannelGather, ChannelScatter
from adaptify.graph.trace import Traced

Runner = Callable[[Tensor], tuple[Tensor, ...]]

_MOST_NUMBERS = 4096  # of a table that is written out

_HEAD = '''"""{title}

Made by adaptify {adaptify}: nothing of it is needed here, only torch and safetensors.
Images are {shape}: (batch, channels, height, width){normalised}.
The network yields {num_classes} scores for each image.

    network = load()
    scores = network(images)
"""

{imports}
import torch
from safetensors.torch import load_file
from torch import nn{functional}

INPUT_SHAPE = {shape_only}
MEAN = {mean}
STD = {std}
CLASSES = {classes}
WEIGHTS = Path(__file__).with_name({weights})


class Part(nn.Module):
    """Layers by name; what is done with them stands in `Network.forward`."""

    def __init__(self, members):
        super().__init__()
        for name, member in members.items():
            setattr(self, name, member)

    def __getitem__(self, name):
        return getattr(self, str(name))
'''

_TAIL = '''

def load(weights=WEIGHTS):
    """Return the network with its weights, ready to use."""
    network = Network()
    tensors = load_file(weights)
    network.load_state_dict({name: tensors[name] for name in network.state_dict()})
    return network.eval()


if __name__ == "__main__":
    with torch.no_grad():
        scores = load()(torch.zeros(2, *INPUT_SHAPE))
    print(f"{sum(p.numel() for p in load().parameters())} parameters; scores {tuple(scores.shape)}")
'''


def python_code(network: Traced, facts: dict[str, Any], weights: str) -> str:
    """Return the file for `network`.

    Args:
        network: A network without decisions.
        facts: What is known of it; see `facts.describe`.
        weights: Name of the file of its weights, which lies beside it.

    Raises:
        UsageError: It has a part that cannot be written.
    """
    root = network.root.eval()
    graph = inline(root, network.graph)
    layers = "\n".join(_indented(_layers(root, graph), 8))
    steps = "\n".join(_indented(forward_lines(graph), 8))
    body = (
        "\n\nclass Network(Part):\n"
        f'    """The network; its parameters have the names of the checkpoint."""\n\n'
        "    def __init__(self):\n        super().__init__({})\n"
        f"{layers}\n\n    def forward(self, x):\n{steps}\n"
    )
    kinds = {type(root.get_submodule(str(node.target))) for node in graph.find_nodes(op="call_module")}
    own = (f"\n{GATHER}" if ChannelGather in kinds else "") + (
        f"\n{SCATTER}" if ChannelScatter in kinds else ""
    )
    return _head(facts, weights, steps) + own + body + _TAIL


def open_python(path: Path, weights: Path) -> Runner:
    """Run the file as a module of its own, and return how to run its network with `weights`."""
    loader = importlib.machinery.SourceFileLoader("adaptify_exported", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    network = module.load(weights)

    def run(images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (network(images),)

    return run


def _head(facts: dict[str, Any], weights: str, steps: str) -> str:
    spec = facts["input"]
    shape = tuple(spec["shape"])
    mean, std = (tuple(spec[name]) if spec.get(name) else None for name in ("mean", "std"))
    classes = facts.get("classes")
    modules = [name for name in ("math", "operator") if f"{name}." in steps]
    # What stands in the docstring must not end it.
    name = re.sub(r"[^\w:./-]", "", str(facts.get("architecture") or "A network"))
    return _HEAD.format(
        title=f"{name}, with the layers that are left of it.",
        adaptify=facts["adaptify"],
        shape=f"(N, {', '.join(map(str, shape))})",
        normalised="" if mean is None else ", with MEAN subtracted and divided by STD, for pixels in [0, 1]",
        num_classes=facts["num_classes"],
        imports="\n".join([*(f"import {name}" for name in modules), "from pathlib import Path\n"]),
        functional="\nfrom torch.nn import functional as F" if "F." in steps else "",
        shape_only=shape,
        mean=mean,
        std=std,
        classes=None if classes is None else list(classes),
        weights=quoted(weights),
    )


def _layers(root: nn.Module, graph: fx.Graph) -> Iterator[str]:
    """Lines that make the layers and parameters that `graph` names."""
    tree: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr") and node.target != "training":
            _place(tree, root, str(node.target), node.op)
    for name, value in tree.items():
        if is_plain(name):
            yield from _assigned(f"self.{name} = ", value, "")
        else:
            yield from _assigned(f"setattr(self, {quoted(name)}, ", value, ")")


def _place(tree: dict[str, Any], root: nn.Module, target: str, op: str) -> None:
    """Put the expression of a layer or parameter into a tree of names."""
    *path, name = target.split(".")
    holder = tree
    for step in path:
        inner = holder.setdefault(step, {})
        if isinstance(inner, str):  # a layer that makes its parts itself
            return
        holder = inner
    if op == "call_module":
        layer = root.get_submodule(target)
        expression = constructor(layer)
        if expression is None:
            raise UsageError(
                f"{target} is a {type(layer).__name__}, which cannot be written as Python", OTHER_FORMATS
            )
        holder[name] = expression
    else:
        holder.setdefault(name, _tensor(root.get_submodule(".".join(path)), name, target))


def _tensor(owner: nn.Module, name: str, target: str) -> str:
    value = getattr(owner, name)
    if not isinstance(value, Tensor):
        raise UsageError(f"{target} is no tensor, and cannot be written as Python", OTHER_FORMATS)
    if isinstance(value, nn.Parameter):
        return f"nn.Parameter(torch.empty({tuple(value.shape)}))"
    if name not in owner._non_persistent_buffers_set:
        return f"nn.Buffer(torch.empty({tuple(value.shape)}, dtype={value.dtype}))"
    if value.numel() > _MOST_NUMBERS:
        raise UsageError(f"{target} is a table of {value.numel()} numbers without a name", OTHER_FORMATS)
    numbers = indices(value.tolist()) if value.dim() == 1 and value.dtype == torch.int64 else value.tolist()
    return f"nn.Buffer(torch.tensor({numbers}, dtype={value.dtype}), persistent=False)"


def _assigned(before: str, value: Any, after: str) -> Iterator[str]:
    if isinstance(value, str):
        yield f"{before}{value}{after}"
        return
    yield f"{before}Part("
    yield "    {"
    for name, inner in value.items():
        yield from _indented(_assigned(f"{quoted(name)}: ", inner, ","), 8)
    yield "    }"
    yield f"){after}"


def _indented(lines: Iterator[str], depth: int) -> Iterator[str]:
    for line in lines:
        yield textwrap.indent(line, " " * depth)
