"""Optimizers and their parameter groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from adaptify.errors import UsageError
from adaptify.training.options import LoopOptions

# With many gates each sees a smaller part of the loss: their decay is that of 20 gates, shared by all.
_DECAY_OF_GATES = 20.0


@dataclass(frozen=True)
class GateParameters:
    """The parameters of a network that belong to gates.

    Attributes:
        parameters: The parameters.
        count: |G|, the number of gates that share the weight decay of 20; None: the decay of the network.
    """

    parameters: Sequence[nn.Parameter]
    count: int | None = None


def parameter_groups(
    model: nn.Module,
    options: LoopOptions,
    gates: GateParameters | None = None,
    companion: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """The trainable parameters of `model`, in groups with the same learning rate and weight decay.

    Gates get `options.gate_lr`, and the weight decay `20 / |G|` times that of the network where they are
    counted. A companion is treated as the network is. Each group keeps its full learning rate as `base_lr`,
    which schedules scale.

    Raises:
        UsageError: There is nothing to train.
    """
    gate_ids = {id(parameter) for parameter in gates.parameters} if gates else set()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in (*model.parameters(), *(companion.parameters() if companion is not None else ())):
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim <= 1 and not options.decay_vectors else options.weight_decay
        kind = (options.lr, decay)
        if id(parameter) in gate_ids:
            assert gates is not None
            shared = options.weight_decay * _DECAY_OF_GATES / max(gates.count or 1, 1)
            kind = (options.gate_lr or options.lr, decay if gates.count is None else shared)
        groups.setdefault(kind, []).append(parameter)
    if not groups:
        raise UsageError(
            f"{type(model).__name__} has no parameters that can be trained",
            "Set requires_grad of those that should be.",
        )
    return [
        {"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in groups.items()
    ]


def make_optimizer(
    model: nn.Module,
    options: LoopOptions,
    gates: GateParameters | None = None,
    companion: nn.Module | None = None,
) -> Optimizer:
    """The optimizer that `options` ask for, over `parameter_groups`.

    Raises:
        UsageError: There is nothing to train.
    """
    groups = parameter_groups(model, options, gates, companion)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    nesterov = options.nesterov and options.momentum > 0  # without momentum there is nowhere to look ahead
    return torch.optim.SGD(groups, momentum=options.momentum, nesterov=nesterov)


def scale_rates(optimizer: Optimizer, factor: float) -> None:
    """Set the learning rate of every group to `factor` times its full one."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
