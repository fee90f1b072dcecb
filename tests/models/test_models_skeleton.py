from __future__ import annotations

import pytest
import torch
from torch import nn

from adaptify.models.skeleton import ParametersOnMeta, has_meta


class Constants(nn.Module):
    """Keeps values that a plain meta construction would lose."""

    def __init__(self):
        super().__init__()
        widths = torch.linspace(4, 8, 3).int().tolist()  # fails under torch.device("meta")
        self.layers = nn.ModuleList(nn.Linear(w, w) for w in widths)
        self.register_buffer("index", torch.arange(5), persistent=False)
        self.scale = torch.ones(3)


def test_parameters_lose_their_values_and_constants_keep_them():
    with ParametersOnMeta():
        module = Constants()
    assert all(p.is_meta for p in module.parameters())
    assert module.index.tolist() == [0, 1, 2, 3, 4]
    assert module.scale.tolist() == [1, 1, 1]
    assert [layer.in_features for layer in module.layers] == [4, 6, 8]


def test_nothing_is_changed_outside_the_context():
    with ParametersOnMeta():
        nn.Linear(2, 2)
    assert not nn.Linear(2, 2).weight.is_meta


def test_random_numbers_are_not_drawn():
    torch.manual_seed(0)
    with ParametersOnMeta():
        nn.Linear(10, 10)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize("place", ["parameter", "buffer", "attribute", "list"])
def test_tensors_without_values_are_found_wherever_they_hide(place):
    module = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(2))
    assert not has_meta(module)
    hidden = torch.empty(2, device="meta")
    if place == "parameter":
        module[1].weight = nn.Parameter(hidden)
    elif place == "buffer":
        module[1].running_mean = hidden
    elif place == "attribute":
        module[0].table = hidden
    else:
        module[0].tables = [torch.zeros(1), hidden]
    assert has_meta(module)
