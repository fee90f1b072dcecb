"""Copies of module trees: whose tensors are whose, and that nothing else is shared."""

from __future__ import annotations

import torch
from torch import nn

from adaptify.graph.copying import share_copy


def test_tensors_are_shared_and_tables_of_hooks_are_not() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    copied = share_copy(model)
    assert all(a is b for a, b in zip(model.parameters(), copied.parameters(), strict=True))
    assert all(a is b for a, b in zip(model.buffers(), copied.buffers(), strict=True))
    seen: list[int] = []
    copied[0].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    copied[0].register_buffer("mine", torch.zeros(1))
    model.eval()(torch.zeros(4, 2))
    assert seen == []
    assert "mine" not in dict(model.named_buffers(recurse=True))
    copied.eval()(torch.zeros(4, 2))
    assert seen == [4]


def test_hooks_travel_with_the_copy() -> None:
    seen: list[int] = []
    model = nn.Sequential(nn.Linear(2, 3))
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    share_copy(model)(torch.zeros(4, 2))
    assert seen == [4]


def test_what_was_shared_is_shared_again() -> None:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, layer, nn.Linear(2, 2))
    model[2].weight = layer.weight
    copied = share_copy(model, lambda tensor: tensor.detach().clone())
    assert copied[0] is copied[1]
    assert copied[2].weight is copied[0].weight
    assert copied[0].weight is not layer.weight
