"""Layers as Python: the expression that makes a layer like the one that is there, with fresh weights."""

from __future__ import annotations

import inspect
import json
import keyword
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from adaptify.graph.adapters import ChannelGather, ChannelScatter

GATHER = '''
class ChannelGather(nn.Module):
    """Some channels of a stream: what a block reads of it."""

    def __init__(self, index, axis):
        super().__init__()
        self.axis = axis
        self.register_buffer("index", torch.tensor(index), persistent=False)

    def forward(self, x):
        return x.index_select(self.axis, self.index)
'''

SCATTER = '''
class ChannelScatter(nn.Module):
    """What a block adds to a stream, which has more channels: each goes to its place."""

    def __init__(self, index, channels, axis):
        super().__init__()
        self.channels = channels
        self.axis = axis
        self.register_buffer("index", torch.tensor(index), persistent=False)

    def forward(self, x, stream=None):
        if stream is None:
            shape = list(x.shape)
            shape[self.axis] = self.channels
            stream = x.new_zeros(shape)
        shape = list(stream.shape)
        shape[self.axis] = len(self.index)
        return stream.index_add(self.axis, self.index, x.expand(shape))
'''

# Arguments that a layer keeps in other ways than under their names.
_KEPT: dict[tuple[type[nn.Module], str], Callable[[Any], Any]] = {
    (nn.MultiheadAttention, "bias"): lambda layer: layer.in_proj_bias is not None,
    (nn.MultiheadAttention, "add_bias_kv"): lambda layer: layer.bias_k is not None,
    (nn.MultiheadAttention, "kdim"): lambda layer: None if layer._qkv_same_embed_dim else layer.kdim,
    (nn.MultiheadAttention, "vdim"): lambda layer: None if layer._qkv_same_embed_dim else layer.vdim,
}
_WHERE = ("device", "dtype")
_LEARNS = ("affine", "elementwise_affine")  # without it, there is no bias either


def is_known(layer: nn.Module) -> bool:
    """Whether `constructor` can write it: a layer of PyTorch, or an adapter."""
    return type(layer).__module__.startswith("torch.nn.") or isinstance(
        layer, (ChannelGather, ChannelScatter)
    )


def constructor(layer: nn.Module) -> str | None:
    """The expression that makes such a layer, with `nn` for `torch.nn`; None where it cannot be told."""
    if isinstance(layer, ChannelGather):
        return f"ChannelGather({indices(layer.rows)}, axis={layer.axis})"
    if isinstance(layer, ChannelScatter):
        return f"ChannelScatter({indices(layer.rows)}, channels={layer.channels}, axis={layer.axis})"
    kind = type(layer)
    if getattr(nn, kind.__name__, None) is not kind:
        return None
    words = []
    positional = True
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name in ("self", *_WHERE) or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        try:
            value = _kept(layer, name, parameter)
        except AttributeError:
            if parameter.default is inspect.Parameter.empty:
                return None
            continue  # an old name of another argument
        if parameter.default is inspect.Parameter.empty and positional:
            words.append(literal(value))
            continue
        positional = False
        if value != parameter.default:
            words.append(f"{name}={literal(value)}")
    return f"nn.{kind.__name__}({', '.join(words)})"


def _kept(layer: nn.Module, name: str, parameter: inspect.Parameter) -> Any:
    special = _KEPT.get((type(layer), name))
    if special is not None:
        return special(layer)
    value = getattr(layer, name)
    if name == "bias":
        if not all(getattr(layer, other, True) for other in _LEARNS):
            return parameter.default
        return value is not None and value is not False
    if isinstance(value, tuple) and value and len(set(value)) == 1 and isinstance(value[0], int):
        one = value[0]
        if parameter.default == one or name in ("kernel_size", "stride", "padding", "dilation"):
            return one
    return value


def literal(value: Any) -> str:
    """A constant as Python.

    Raises:
        ValueError: It is none.
    """
    if isinstance(value, (tuple, list)):
        inner = [literal(item) for item in value]
        if isinstance(value, list):
            return f"[{', '.join(inner)}]"
        return f"({', '.join(inner)}{',' if len(inner) == 1 else ''})"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, slice):
        parts = ", ".join(literal(part) for part in (value.start, value.stop, value.step))
        return f"slice({parts})"
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    if value is Ellipsis:
        return "..."
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        return repr(value)
    raise ValueError(f"{value!r} is no constant")


def is_plain(name: str) -> bool:
    """Whether a name can stand behind a dot."""
    return name.isidentifier() and not keyword.iskeyword(name)


def quoted(text: str) -> str:
    """A text as Python, in double quotes where it can be."""
    return json.dumps(text) if text.isascii() and text.isprintable() else repr(text)


def indices(values: Sequence[int]) -> str:
    """Ascending numbers as a list, runs of them as ranges."""
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][-1] + 1 == value:
            runs[-1].append(value)
        else:
            runs.append([value])
    parts: list[str] = []
    for run in runs:
        parts += [f"*range({run[0]}, {run[-1] + 1})"] if len(run) > 2 else [str(value) for value in run]
    return f"[{', '.join(parts)}]"
