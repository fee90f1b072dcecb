"""Gumbel gates: what they draw, what flows back through them, and how grouped ones decide."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adaptify.gates.gumbel import DependentGates, IndependentGates, initial_odds, sample_gates
from adaptify.graph.cost import count_module


@settings(max_examples=50, deadline=None)
@given(
    odds=st.lists(st.floats(-50, 50, allow_nan=False, width=32), min_size=1, max_size=20),
    temperature=st.floats(0.05, 20),
    seed=st.integers(0, 1000),
)
def test_gates_are_exactly_zero_or_one_and_gradients_are_finite(
    odds: list[float], temperature: float, seed: int
) -> None:
    torch.manual_seed(seed)
    logits = torch.tensor(odds, requires_grad=True)
    gates = sample_gates(logits, temperature)
    assert gates.shape == logits.shape
    assert set(gates.tolist()) <= {0.0, 1.0}
    (gradient,) = torch.autograd.grad(gates.sum(), logits)
    # The slope of a sigmoid of slope 1 / temperature: never against the odds, a quarter of it at most.
    assert bool(((gradient >= 0) & (gradient <= 0.25 / temperature * (1 + 1e-5))).all())


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_gates_are_open_as_often_as_their_odds_say_at_any_temperature(temperature: float) -> None:
    torch.manual_seed(0)
    odds = torch.tensor([-2.0, 0.0, 1.0, initial_odds(0.98)])
    count = 40_000
    share = sample_gates(odds.expand(count, -1), temperature).mean(0)
    expected = odds.sigmoid()
    error = (expected * (1 - expected) / count).sqrt()
    assert bool(((share - expected).abs() < 4 * error).all())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_gradient_is_that_of_the_soft_sample(temperature: float) -> None:
    torch.manual_seed(0)
    count = 40_000
    odds = torch.tensor([-1.5, 0.0, 2.0], requires_grad=True)
    sample_gates(odds.expand(count, -1), temperature).mean(0).sum().backward()
    # The mean of soft samples, sigmoid((odds + logistic noise) / temperature), over a fine grid of noise.
    same = odds.detach().double().requires_grad_()
    noise = torch.linspace(0, 1, 100_001, dtype=torch.float64)[:-1] + 0.5e-5
    soft = ((same + noise.logit().unsqueeze(1)) / temperature).sigmoid().mean(0)
    soft.sum().backward()
    assert odds.grad is not None
    assert same.grad is not None
    torch.testing.assert_close(odds.grad.double(), same.grad, atol=0.25 / temperature * 0.015, rtol=0)


def test_at_even_odds_and_temperature_one_the_mean_slope_is_a_sixth() -> None:
    # The soft sample is uniform there, and the mean of u (1 - u) is 1/6.
    torch.manual_seed(0)
    odds = torch.zeros(40_000, requires_grad=True)
    sample_gates(odds).sum().backward()
    assert odds.grad is not None
    assert float(odds.grad.mean()) == pytest.approx(1 / 6, abs=1e-3)


def test_odds_in_half_precision_are_drawn_in_full() -> None:
    torch.manual_seed(0)
    odds = torch.full((20_000,), initial_odds(0.98), dtype=torch.bfloat16)
    gates = sample_gates(odds)
    assert gates.dtype == torch.float32
    assert float(gates.mean()) == pytest.approx(0.98, abs=0.005)


@pytest.mark.parametrize("probability", [0.98, 0.87, 0.5, 0.01])
def test_free_gates_start_at_their_probability_with_opposite_logits(probability: float) -> None:
    gates = IndependentGates(7, probability)
    odds = gates()
    assert tuple(odds.shape) == (7,)
    assert odds.sigmoid().tolist() == pytest.approx([probability] * 7, abs=1e-6)
    (logits,) = gates.parameters()
    assert logits.numel() == 14
    assert logits.detach().sum(0).abs().max() < 1e-6


def test_free_gates_cost_nothing_and_learn_one_by_one() -> None:
    gates = IndependentGates(3, 0.5)
    assert count_module(gates) == 0
    gates()[1].backward()
    (logits,) = gates.parameters()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0, -1, 0], [0, 1, 0]]


@pytest.mark.parametrize("probability", [0.98, 0.87])
def test_gates_that_look_start_nearly_open_whatever_they_see(probability: float) -> None:
    torch.manual_seed(0)
    gates = DependentGates(12, 40, open_probability=probability)
    images = torch.randn(64, 12, 4, 4) * 3 + torch.randn(12, 1, 1)
    for training in (True, False):
        with torch.no_grad():
            chance = gates.train(training)(images).sigmoid()
        assert tuple(chance.shape) == (64, 40)
        assert float(chance.mean()) == pytest.approx(probability, abs=0.02)
        assert float(chance.min()) > probability - 0.2
    assert not torch.equal(chance[0], chance[1])


def gate_alone(gates: DependentGates, index: int, hidden: int) -> nn.Sequential:
    """The network of one gate as the paper draws it: 1x1 convolution, BatchNorm, ReLU, 1x1 convolution."""
    rows = slice(index * hidden, (index + 1) * hidden)
    alone = nn.Sequential(
        nn.Conv2d(gates.squeeze.in_features, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, 2, 1),
    )
    with torch.no_grad():
        alone[0].weight.copy_(gates.squeeze.weight[rows, :, None, None])
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(alone[1], name).copy_(getattr(gates.norm, name)[rows])
        alone[3].weight.copy_(gates.weight[index].T[:, :, None, None])
        alone[3].bias.copy_(gates.bias[index, 0])
    return alone


@pytest.mark.parametrize("training", [False, True])
def test_deciding_together_is_deciding_each_gate_on_its_own(training: bool) -> None:
    torch.manual_seed(0)
    hidden, count = 5, 4
    gates = DependentGates(6, count, hidden=hidden)
    with torch.no_grad():
        for parameter in gates.parameters():
            parameter.normal_()
        gates.norm.running_mean.normal_()
        gates.norm.running_var.uniform_(0.5, 2)
    alone = [gate_alone(gates, index, hidden).train(training) for index in range(count)]
    gates.train(training)
    images = torch.randn(9, 6, 4, 3)
    with torch.no_grad():
        logits = torch.cat([one(images.mean((2, 3), keepdim=True)) for one in alone], 1)[..., 0, 0]
        odds = gates(images)
    torch.testing.assert_close(odds, logits[:, 1::2] - logits[:, ::2], atol=1e-5, rtol=1e-5)
    means = torch.cat([one[1].running_mean for one in alone])
    torch.testing.assert_close(gates.norm.running_mean, means, atol=1e-6, rtol=1e-5)


def test_every_layout_of_the_same_values_decides_the_same() -> None:
    torch.manual_seed(0)
    first, last = DependentGates(6, 3), DependentGates(6, 3, channel_axis=-1)
    last.load_state_dict(first.state_dict())
    first.eval()
    last.eval()
    images = torch.randn(5, 6, 4, 4)
    with torch.no_grad():
        expected = first(images)
        for odds in (
            first(images.contiguous(memory_format=torch.channels_last)),
            last(images.permute(0, 2, 3, 1)),
            last(images.flatten(2).transpose(1, 2)),
            first(images.mean((2, 3))),
        ):
            torch.testing.assert_close(odds, expected)


@pytest.mark.parametrize(("channels", "gates", "hidden"), [(64, 12, 16), (5, 1, 3)])
def test_macs_of_deciding_are_counted(channels: int, gates: int, hidden: int) -> None:
    module = DependentGates(channels, gates, hidden=hidden)
    by_hand = gates * (channels * hidden + hidden * 2)
    assert count_module(module, (1, channels, 7, 7)) == by_hand
    assert count_module(module, (3, channels, 7, 7)) == 3 * by_hand


def test_gates_that_look_learn_through_all_their_layers() -> None:
    torch.manual_seed(0)
    gates = DependentGates(6, 3)
    images = torch.randn(16, 6, 4, 4, requires_grad=True)
    sample_gates(gates(images)).mean().backward()
    touched: list[Tensor | None] = [images.grad, *(parameter.grad for parameter in gates.parameters())]
    assert all(gradient is not None and float(gradient.abs().max()) > 0 for gradient in touched)


def test_odds_and_probabilities_are_inverse() -> None:
    assert initial_odds(0.5) == 0
    assert initial_odds(0.98) == pytest.approx(math.log(49))


def test_gates_that_are_kept_decide_as_before() -> None:
    torch.manual_seed(0)
    gates = DependentGates(6, 4, hidden=3, channel_axis=-1).eval()
    with torch.no_grad():
        for parameter in gates.parameters():
            parameter.normal_()
        gates.norm.running_mean.normal_()
        images = torch.randn(5, 4, 4, 6)
        smaller = gates.keep_gates([3, 1])
        torch.testing.assert_close(smaller(images), gates(images)[:, [3, 1]])
    assert not smaller.training


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("gates", [1, 64, 65])
def test_for_inference_they_decide_the_same(gates: int, axis: int) -> None:
    torch.manual_seed(0)
    module = DependentGates(6, gates, hidden=5, channel_axis=axis)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    features = torch.randn(9, 6, 4, 5).movedim(1, axis)
    with torch.no_grad():
        module(features)  # moves the statistics of BatchNorm
        wanted = module.eval()(features)
        assert float(wanted.std(0).min()) > 0.02
        torch.testing.assert_close(module.for_inference()(features), wanted, rtol=1e-4, atol=1e-4)
