"""Shapes of all nodes, found by running the graph on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from adaptify.errors import ModelError
from adaptify.graph.copying import meta_copy, share_copy


def annotate_shapes(root: nn.Module, graph: fx.Graph, input_shape: tuple[int, int, int]) -> None:
    """Find out what every node of `graph` yields, and write it into the node's `meta`.

    The graph runs at two batch sizes: what differs between them belongs to the samples.

    - `shape`: shape of the tensor at batch size 2, or None when the node yields no tensor;
    - `batched`: whether the node yields a tensor whose first axis is the batch;
    - `sampled`: whether the value belongs to the samples of the batch (a tensor of theirs, their number);
    - `constant`: the value, for nodes that yield numbers that are the same for every batch.

    Raises:
        ModelError: The network does not run on images of `input_shape`.
    """
    recorder = Recorder(root, graph)
    two, three = (recorder.run_on(torch.zeros(batch, *input_shape)) for batch in (2, 3))
    for node in graph.nodes:
        first, second = two[node], three[node]
        is_tensor = isinstance(first, Tensor)
        varies = _summary(first) != _summary(second)
        from_samples = any(parent.meta["sampled"] for parent in node.all_input_nodes)
        node.meta["shape"] = tuple(first.shape) if is_tensor else None
        node.meta["batched"] = (
            is_tensor
            and first.dim() > 0
            and (first.shape[0], second.shape[0]) == (2, 3)
            and first.shape[1:] == second.shape[1:]
        )
        node.meta["sampled"] = varies or (is_tensor and from_samples)
        # What is read from the module tree (the mode of the network) may change between runs.
        if not varies and _is_literal(first) and node.op != "get_attr":
            node.meta["constant"] = first


class Recorder(fx.Interpreter):
    """Runs a graph node by node, on the meta device, and keeps all values.

    Operations without a meta implementation make the whole run fall back to real tensors.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self._values: dict[fx.Node, Any] = {}
        self._real_root = root
        super().__init__(meta_copy(root).eval(), graph=graph)

    def run_on(self, images: Tensor) -> dict[fx.Node, Any]:
        """Execute the graph in evaluation mode for `images` (N, C, H, W); return every node's value.

        Raises:
            ModelError: The network refuses images of this shape.
        """
        self._values = {}
        fast_path = torch.backends.mha.get_fastpath_enabled()
        # The fused attention kernel hides its matrix products from counters and needs real tensors.
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad():
                try:
                    with torch.device("meta"):
                        self.run(images.to("meta"))
                except Exception:
                    self._run_real(images)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
        return self._values

    def _run_real(self, images: Tensor) -> None:
        self._values.clear()
        self.module = share_copy(self._real_root, lambda tensor: tensor.detach().clone()).eval()
        self.submodules = dict(self.module.named_modules())
        try:
            self.run(images)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            shape = "x".join(str(size) for size in images.shape[1:])
            raise ModelError(
                f"{type(self._real_root).__name__} does not run on {shape} images: {reason}",
                "Give the size the network was made for with --input-size.",
            ) from error

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a module, or skip one that would only yield its input's shape (slow on meta)."""
        if len(args) == 1 and not kwargs and _keeps_shape(self.fetch_attr(target), args[0]):
            return args[0]
        return super().call_module(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and keep its value."""
        self._values[n] = super().run_node(n)
        return self._values[n]


# Modules that cost nothing under any counting convention, and yield what has their input's shape.
_POINTWISE = (
    nn.Identity, nn.Dropout, nn.Hardtanh, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.SiLU, nn.GELU
)  # fmt: skip
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _keeps_shape(module: Any, value: Any) -> bool:
    """Whether `module` accepts `value` (a meta tensor) and yields a tensor like it."""
    if not isinstance(value, Tensor) or not value.is_meta:
        return False
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    if type(module) in _BATCH_NORMS:
        return value.dim() > 2 and value.shape[1] == module.num_features
    if type(module) is nn.LayerNorm:
        return tuple(value.shape[-len(module.normalized_shape) :]) == module.normalized_shape
    return type(module) in _POINTWISE


def _is_literal(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_literal(item) for item in value)
    return isinstance(value, (bool, int, float, torch.dtype))


def _summary(value: Any) -> Any:
    """A comparable stand-in for a node's value: tensors by shape, containers element by element."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, (tuple, list)):
        return [_summary(item) for item in value]
    if isinstance(value, dict):
        return {key: _summary(item) for key, item in value.items()}
    return value
