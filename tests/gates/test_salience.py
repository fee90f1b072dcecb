"""Saliences: ReLU-1 exact and leaky, and the net that predicts them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adaptify.gates.salience import LEAK, SalienceNet, leaky_relu1, relu1
from adaptify.graph.cost import count_module

values = st.lists(st.floats(-100, 100, allow_nan=False, width=32), min_size=1, max_size=20)


def gradient(of: Tensor, at: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(of.sum(), at)
    return found


@settings(max_examples=100, deadline=None)
@given(values)
def test_relu1_is_what_equation_5_says(numbers: list[float]) -> None:
    x = torch.tensor(numbers)
    expected = [0.0 if value <= 0 else value if value <= 1 else 1.0 for value in x.tolist()]
    assert relu1(x).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(values, st.floats(0.001, 0.5))
def test_leaky_relu1_leaks_outside_and_only_there(numbers: list[float], slope: float) -> None:
    x = torch.tensor(numbers, requires_grad=True)
    inside = (x >= 0) & (x <= 1)
    found = leaky_relu1(x, slope)
    assert torch.equal(found[inside], relu1(x)[inside])
    # Beyond 0 and 1 it is off by the slope times how far beyond.
    beyond = x - relu1(x)
    assert torch.allclose(found - relu1(x), slope * beyond, atol=1e-6)
    expected = torch.where(inside, torch.ones(()), torch.full((), slope))
    assert torch.allclose(gradient(found, x), expected)


def test_saliences_that_start_at_one_have_the_whole_gradient() -> None:
    x = torch.tensor([0.0, 1.0], requires_grad=True)
    assert gradient(leaky_relu1(x), x).tolist() == [1.0, 1.0]
    beyond = torch.tensor([-0.5, 1.5], requires_grad=True)
    assert gradient(leaky_relu1(beyond), beyond).tolist() == pytest.approx([LEAK, LEAK])


def test_fresh_saliences_are_one_whatever_comes_in() -> None:
    net = SalienceNet(5, 3)
    assert torch.equal(net(torch.randn(4, 5, 2, 2)), torch.ones(4, 3))


@pytest.mark.parametrize(
    ("axis", "shape"), [(1, (2, 3, 4, 4)), (-1, (2, 4, 4, 3)), (-1, (2, 7, 3)), (1, (2, 3))]
)
def test_saliences_are_linear_in_the_average_of_each_channel(axis: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    net = SalienceNet(3, 4, channel_axis=axis)
    with torch.no_grad():
        net.linear.weight.normal_(generator=generator)
    features = torch.randn(shape, generator=generator)
    by_channel = features.movedim(axis, 1).reshape(2, 3, -1).mean(2)
    torch.testing.assert_close(net(features), by_channel @ net.linear.weight.T + 1)


def test_the_net_costs_one_linear_layer() -> None:
    net = SalienceNet(16, 17)
    # L-Net and C-Net of the first block of a ResNet of CIFAR: 16 channels in, 1 + 16 saliences.
    assert count_module(net, (1, 16, 32, 32)) == 16 * 17
    assert sum(parameter.numel() for parameter in net.parameters()) == 16 * 17 + 17
    assert isinstance(net.linear, nn.Linear)
