"""A module that looks like the network it was made of: same parameters, buffers and children by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from adaptify.errors import ModelError
from adaptify.graph.copying import share_copy
from adaptify.graph.trace import Traced
from adaptify.plan import Plan
from adaptify.runtime.budgeted import Budgeted


class NetworkView(Budgeted, nn.Module):
    """The module tree of a traced network, with gates beside it, as one module.

    The state dict holds the network under the checkpoint's own names, and the gates under one more.

    Attributes:
        traced: The network as a graph; its root owns the same tensors as this module.
        num_classes: M.
        memory_format: Layout that images are brought to first.
        policy: How the network decides; may be replaced between batches.
        plan: How to make this network again, if that is known; needed to save it.
    """

    def __init__(self, traced: Traced, gates: Mapping[str, nn.Module]) -> None:
        """Put `gates` beside the modules of `traced`.

        Raises:
            ModelError: The network does not map a batch of images to (N, M) scores.
        """
        super().__init__()
        root = share_copy(traced.root)
        self._gates_name = "adaptify_gates" if hasattr(root, "gates") else "gates"
        if gates:
            root.add_module(self._gates_name, nn.ModuleDict(gates))
        # This module is a view of the root: same parameters, buffers and children under the same names.
        # The root itself stays out of the registries, and its children cannot clash with our methods.
        for registry in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            object.__setattr__(self, registry, getattr(root, registry))
        self.traced = replace(traced, root=root)
        self.num_classes = _num_classes(traced)
        self.memory_format = torch.contiguous_format
        self.plan: Plan | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        # The network may have submodules called like attributes of ours: those are never registered.
        if isinstance(value, (Tensor, nn.Module)):
            super().__setattr__(name, value)
        else:
            object.__setattr__(self, name, value)

    @abstractmethod
    def policy_json(self) -> dict[str, Any] | None:
        """The policy as JSON, or None where there is nothing to decide."""

    @property
    def gate_parameters(self) -> tuple[nn.Parameter, ...]:
        """The parameters of the gates."""
        prefix = f"{self._gates_name}."
        return tuple(parameter for name, parameter in self.named_parameters() if name.startswith(prefix))

    def gate_state(self) -> dict[str, Tensor]:
        """The parameters and buffers of the gates, as the state dict names them."""
        prefix = f"{self._gates_name}."
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith(prefix)}

    def backbone(self) -> Traced:
        """The network without its gates, sharing this module's tensors."""
        root = share_copy(self.traced.root)
        if hasattr(root, self._gates_name):
            delattr(root, self._gates_name)
        return replace(self.traced, root=root)


def _num_classes(traced: Traced) -> int:
    (result,) = next(iter(reversed(traced.graph.nodes))).args
    shape = result.meta["shape"] if hasattr(result, "meta") else None
    if shape is None or len(shape) != 2 or not result.meta["batched"]:
        raise ModelError(
            f"{type(traced.root).__name__} does not return one score per class: its output is "
            f"{'not a single tensor' if shape is None else f'a tensor of shape {shape} at batch size 2'}",
            "Give a classification network that maps (N, C, H, W) to (N, classes).",
        )
    return int(shape[1])
