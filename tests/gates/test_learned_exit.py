"""Convolutional heads, the gates of learned exits, and operations on gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adaptify.gates.conv_head import ConvHead
from adaptify.gates.exit_head import ExitHead
from adaptify.gates.gradient import scale_gradient
from adaptify.gates.learned_exit import ExitGate, LearnedExit
from adaptify.graph.cost import count_module


def features(count: int = 2, channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


# --- The classifier of MSDNet ---


def test_a_convolutional_head_by_hand() -> None:
    torch.manual_seed(0)
    head = ConvHead(3, 5, width=4).eval()
    (first, norm, _), (second, other, _) = head.features
    with torch.no_grad():
        x = features()
        for convolution, normalisation in ((first, norm), (second, other)):
            x = F.conv2d(x, convolution.weight, stride=2, padding=1)
            x = torch.relu(normalisation(x))
        assert x.shape == (2, 4, 2, 2)  # a quarter of the side
        wanted = F.linear(x.mean((2, 3)), head.linear.weight, head.linear.bias)
        torch.testing.assert_close(head(features()), wanted)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_a_convolutional_head_takes_maps_of_any_size(size: int) -> None:
    assert ConvHead(3, 5, width=4).eval()(features(size=size)).shape == (2, 5)


def test_macs_of_a_convolutional_head_by_hand() -> None:
    first, second, linear = 4 * 4 * 9 * 3 * 6, 2 * 2 * 9 * 6 * 6, 6 * 5
    assert count_module(ConvHead(3, 5, width=6), (1, 3, 8, 8)) == first + second + linear


# --- Who leaves ---


@pytest.mark.parametrize("size", [2, 4, 7, 8])
def test_a_gate_yields_one_number_for_each_sample(size: int) -> None:
    odds = ExitGate(3, width=6).eval()(features(5, size=size))
    assert odds.shape == (5,)


def test_macs_of_a_gate_by_hand() -> None:
    """Neither convolution has a stride: a gate with the head's width costs several times as much."""
    first, second, linear = 64 * 9 * 3 * 6, 64 * 9 * 6 * 6, 6 * 16
    assert count_module(ExitGate(3, width=6), (1, 3, 8, 8)) == first + second + linear
    assert count_module(ExitGate(3, width=6), (1, 3, 8, 8)) > 3 * count_module(
        ConvHead(3, 5, width=6), (1, 3, 8, 8)
    )


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.98])
def test_a_fresh_gate_lets_about_as_many_leave_as_it_is_told(probability: float) -> None:
    torch.manual_seed(0)
    gate = ExitGate(3, leave_probability=probability)
    with torch.no_grad():
        found = gate(features(64)).sigmoid()
    assert float(found.mean()) == pytest.approx(probability, abs=0.05)
    assert float(found.std()) > 0  # it looks at the sample


def test_a_gate_can_learn_which_samples_leave() -> None:
    torch.manual_seed(0)
    gate, x = ExitGate(3, width=4).train(), features(32)
    wanted = (x.mean((1, 2, 3)) > 0).float()
    optimizer = torch.optim.SGD(gate.parameters(), lr=0.2, momentum=0.9)
    for _ in range(40):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(gate(x), wanted).backward()
        optimizer.step()
    with torch.no_grad():
        assert float(((gate(x) > 0) == wanted.bool()).double().mean()) > 0.9


def test_a_learned_exit_predicts_with_its_head() -> None:
    torch.manual_seed(0)
    head = ExitHead(3, 5)
    exit_ = LearnedExit(head, ExitGate(3, width=4)).eval()
    with torch.no_grad():
        assert torch.equal(exit_(features()), head(features()))


# --- Gradients ---


@given(st.floats(-3, 3), st.floats(-3, 3))
@settings(deadline=None, max_examples=30)
def test_scaled_gradients_change_nothing_but_the_gradient(first: float, second: float) -> None:
    x = features().requires_grad_()
    once = scale_gradient(x, first)
    assert torch.equal(once, x)
    twice = scale_gradient(once, second)
    assert torch.equal(twice, x)
    weights = features(size=8).flip(0)
    (gradient,) = torch.autograd.grad((twice * weights).sum(), x)
    torch.testing.assert_close(gradient, first * second * weights)


def test_each_branch_has_its_own_factor() -> None:
    x = torch.ones(1, requires_grad=True)
    (2 * scale_gradient(x, 0.5) + 5 * scale_gradient(x, 0.1) + x).sum().backward()
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(2 * 0.5 + 5 * 0.1 + 1)
