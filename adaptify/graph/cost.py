"""The one cost model: how many multiply-adds (MACs) each node of a graph does for one sample.

Nodes run on the meta device and the tensor operations below them are counted, so a module that
tracing kept whole (attention, a custom block) is counted as exactly as a plain convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adaptify.errors import UsageError, did_you_mean
from adaptify.graph.copying import meta_copy
from adaptify.graph.shapes import Recorder
from adaptify.graph.trace import Traced

aten = torch.ops.aten

Counter = Callable[[tuple[Any, ...], Any], int]
"""(arguments of the operation, its result) -> MACs."""


class CostModel:
    """MACs of every node of a traced network, for one sample.

    Attributes:
        macs: Node name -> MACs (an exact integer).
        total: Sum over all nodes, in MACs.
        uncounted: Operations that ran but are not PyTorch's own, so their cost is unknown.
        convention: Name of the counting convention.
    """

    # In inference mode PyTorch hands whole layers to the counter instead of the products inside them.
    @torch.inference_mode(False)
    def __init__(self, traced: Traced, convention: str = "macs") -> None:
        """Count `traced` under `convention` (a key of `CONVENTIONS`).

        Raises:
            UsageError: The convention is unknown.
            ModelError: The network does not run on its input shape.
        """
        counters = _convention(convention)
        recorder = _CountingRecorder(traced.root, traced.graph, counters)
        recorder.run_on(torch.zeros(1, *traced.input_shape))
        self.convention = convention
        self.macs: Mapping[str, int] = recorder.macs
        self.total = sum(recorder.macs.values())
        self.uncounted = tuple(sorted(recorder.uncounted))

    def of(self, nodes: Iterable[fx.Node]) -> int:
        """MACs of `nodes` together."""
        return sum(self.macs[node.name] for node in nodes)


@torch.inference_mode(False)
def count_module(module: nn.Module, *shapes: tuple[int, ...], convention: str = "macs") -> int:
    """MACs of `module` called with tensors of the given shapes (batch axis included)."""
    mode = _CountingMode(_convention(convention))
    with torch.no_grad(), torch.device("meta"), mode:
        meta_copy(module).eval()(*(torch.empty(shape) for shape in shapes))
    return mode.count


def _convolution(args: tuple[Any, ...], result: Tensor) -> int:
    inputs, weight, transposed = args[0], args[1], args[6]
    # Each output position of a convolution (each input position of a transposed one) meets one filter.
    positions = inputs if transposed else result
    return int(positions.shape[0] * math.prod(positions.shape[2:]) * weight.numel())


def _mm(args: tuple[Any, ...], result: Tensor) -> int:
    return result.numel() * int(args[0].shape[-1])


def _addmm(args: tuple[Any, ...], result: Tensor) -> int:
    return result.numel() * int(args[1].shape[-1])


def _attention(args: tuple[Any, ...], result: Any) -> int:
    """Queries x keys, then weights x values, for (..., L, E), (..., S, E), (..., S, V)."""
    query, key, value = args[:3]
    return int(math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _addmm_with_bias(args: tuple[Any, ...], result: Tensor) -> int:
    return _addmm(args, result) + result.numel()


def _numel(args: tuple[Any, ...], result: Tensor) -> int:
    return result.numel()


def _window(args: tuple[Any, ...], result: Any) -> int:
    output = result[0] if isinstance(result, tuple) else result
    return int(output.numel() * math.prod(args[1]))


def _whole(args: tuple[Any, ...], result: Tensor) -> int:
    return int(args[0].numel())


_MACS: dict[Any, Counter] = {
    aten.convolution: _convolution,
    aten._convolution: _convolution,
    aten.mm: _mm,
    aten.bmm: _mm,
    aten.mv: _mm,
    aten.dot: lambda args, result: int(args[0].numel()),
    aten.addmm: _addmm,
    aten.baddbmm: _addmm,
    aten.addmv: _addmm,
    aten._scaled_dot_product_flash_attention: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_efficient_attention: _attention,
    aten._scaled_dot_product_cudnn_attention: _attention,
    aten._scaled_dot_product_fused_attention_overrideable: _attention,
}

_MSDNET: dict[Any, Counter] = {
    aten.addmm: _addmm_with_bias,
    aten.relu: _numel,
    aten.relu_: _numel,
    aten.max_pool2d_with_indices: _window,
    aten.avg_pool2d: _window,
    aten._adaptive_avg_pool2d: _whole,
    aten.mean: _whole,
}

CONVENTIONS: Mapping[str, Mapping[Any, Counter]] = MappingProxyType(
    {
        # Multiply-adds of convolutions, linear layers, matrix products and attention; biases, normalisation,
        # activations and pooling count nothing.
        "macs": _MACS,
        # As in the MSDNet literature: in addition a ReLU counts its elements, pooling its window reads and
        # a linear layer its biases.
        "msdnet": _MACS | _MSDNET,
    }
)
"""Counting conventions by name."""


def _convention(name: str) -> Mapping[Any, Counter]:
    if name not in CONVENTIONS:
        raise UsageError(
            f"unknown counting convention '{name}'{did_you_mean(name, CONVENTIONS)}",
            f"Use one of: {', '.join(CONVENTIONS)}.",
        )
    return CONVENTIONS[name]


class _CountingMode(TorchDispatchMode):
    """Sums the MACs of all tensor operations run under it."""

    def __init__(self, counters: Mapping[Any, Counter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counters = counters
        self.count = 0
        self.uncounted: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        counter = self.counters.get(func.overloadpacket)
        if counter is not None:
            self.count += counter(args, result)
        elif func.namespace not in ("aten", "prim", "prims"):
            self.uncounted.add(str(func))
        return result


class _CountingRecorder(Recorder):
    """A recorder that also counts each node."""

    def __init__(self, root: nn.Module, graph: fx.Graph, counters: Mapping[Any, Counter]) -> None:
        super().__init__(root, graph)
        self.macs: dict[str, int] = {}
        self.uncounted: set[str] = set()
        self._counters = counters

    def run_node(self, n: fx.Node) -> Any:
        with _CountingMode(self._counters) as mode:
            value = super().run_node(n)
        self.macs[n.name] = mode.count
        self.uncounted |= mode.uncounted
        return value
