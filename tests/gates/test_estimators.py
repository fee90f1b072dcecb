"""Rounding with a straight-through gradient, and gates that are drawn with noise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptify.gates.estimators import SLOPES, Estimator, NoisyRounding, round_through

ESTIMATORS = st.sampled_from(sorted(SLOPES))
PROBABILITIES = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20)


def slope(estimator: Estimator, p: float) -> float:
    """The formulas of docs/methods/sgad.md."""
    if estimator == "identity":
        return 1.0
    if estimator == "sigmoid":
        soft = 1 / (1 + math.exp(-10 * (p - 0.5)))
        return 10 * soft * (1 - soft)
    u = 2 * (p - 0.5)
    return (math.sin(math.pi * u) / (math.pi * u) if u else 1.0) / 0.5894898722360836


@settings(max_examples=100, deadline=None)
@given(values=PROBABILITIES, estimator=ESTIMATORS)
def test_forward_is_rounding_and_the_gradient_is_the_formula(
    values: list[float], estimator: Estimator
) -> None:
    p = torch.tensor(values, requires_grad=True)
    gates = round_through(p, estimator)
    assert gates.equal(p.detach().round())  # torch rounds one half down to the even 0
    factors = torch.linspace(-1, 2, len(values))
    (gradient,) = torch.autograd.grad((gates * factors).sum(), p)
    wanted = torch.tensor([slope(estimator, value) for value in values]) * factors
    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)


@settings(max_examples=100, deadline=None)
@given(p=st.floats(0, 1), estimator=ESTIMATORS)
def test_slopes_are_symmetric_nowhere_negative_and_largest_at_the_threshold(
    p: float, estimator: Estimator
) -> None:
    here, mirrored, middle = SLOPES[estimator](torch.tensor([p, 1 - p, 0.5], dtype=torch.float64)).tolist()
    assert here == pytest.approx(mirrored, abs=1e-9)
    assert -1e-9 <= here <= middle + 1e-9


@pytest.mark.parametrize(("estimator", "rise"), [("identity", 1), ("sigmoid", math.tanh(2.5)), ("sinc", 1)])
def test_slopes_are_those_of_functions_that_rise_as_rounding_does(estimator: Estimator, rise: float) -> None:
    grid = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    assert float(torch.trapezoid(SLOPES[estimator](grid), grid)) == pytest.approx(rise, abs=1e-6)


def test_decisions_made_for_good_learn_nothing_from_a_sinc() -> None:
    assert SLOPES["sinc"](torch.tensor([0.0, 1.0])).abs().max() < 1e-6


@pytest.mark.parametrize("noise", [0.0, 1.5])
def test_gates_are_rounded_under_normal_noise_on_the_odds(noise: float) -> None:
    sampler = NoisyRounding("sinc")
    sampler.set_noise(noise)
    odds = torch.tensor([-1.5, -0.1, 0.2, 3.0], dtype=torch.bfloat16, requires_grad=True)
    torch.manual_seed(0)
    count = 20_000
    gates = sampler(odds.expand(count, -1))
    assert set(gates.unique().tolist()) == {0.0, 1.0}
    exact = odds.detach().double()
    expected = torch.distributions.Normal(0, 1).cdf(exact / noise) if noise else (exact > 0).double()
    torch.testing.assert_close(gates.double().mean(0), expected, atol=0.015, rtol=0)
    gates.sum().backward()
    assert odds.grad is not None
    assert bool((odds.grad > 0).all())


def test_without_noise_nothing_is_drawn() -> None:
    odds = torch.randn(50, 4)
    assert NoisyRounding()(odds).equal((odds > 0).float())
