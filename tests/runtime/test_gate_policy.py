"""Policies of saliences, and policies as JSON whatever their kind."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptify.errors import ModelError, UsageError
from adaptify.runtime.gate_policy import GatePolicy, Policy, SaliencePolicy, policy_from_json

RAW = torch.tensor([-1.0, 0.0, 0.1, 0.25, 0.5, 1.0, 3.0])


def test_saliences_scale_what_they_do_not_close() -> None:
    assert SaliencePolicy().decide(RAW).tolist() == RAW.clamp(0, 1).tolist()
    assert SaliencePolicy(0.25).decide(RAW).tolist() == [0, 0, 0, 0, 0.5, 1, 1]
    # Not even a salience of 1 is more than 1.
    assert SaliencePolicy(1.0).decide(RAW).tolist() == [0] * len(RAW)


@given(st.lists(st.floats(-3, 3, width=32), min_size=1), st.floats(0, 1))
def test_what_is_above_the_threshold_is_kept_as_it_is(raw: list[float], tau: float) -> None:
    values = torch.tensor(raw, dtype=torch.float64)
    gates = SaliencePolicy(tau).decide(values)
    salience = values.clamp(0, 1)
    assert gates.dtype == torch.float64
    assert torch.equal(gates[salience > tau], salience[salience > tau])
    assert not gates[salience <= tau].any()


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0])
def test_how_open_a_salience_is_does_not_depend_on_the_threshold(tau: float) -> None:
    assert SaliencePolicy(tau).openness(RAW).tolist() == RAW.clamp(0, 1).tolist()


def test_the_openness_of_a_gate_is_its_probability() -> None:
    assert torch.equal(GatePolicy(tau=0.9).openness(RAW), RAW.sigmoid())


@pytest.mark.parametrize("tau", [-0.1, 1.1, math.nan, math.inf])
def test_thresholds_are_saliences(tau: float) -> None:
    with pytest.raises(UsageError, match="is no salience"):
        SaliencePolicy(tau)


def test_saliences_are_not_drawn() -> None:
    policy = SaliencePolicy(0.2)
    assert policy.runs == 1
    assert not policy.draws
    assert not policy.variants()
    assert GatePolicy("stochastic").draws
    assert not GatePolicy().draws


@pytest.mark.parametrize("policy", [SaliencePolicy(0.2), GatePolicy("stochastic", 0.3, runs=4)])
def test_another_threshold_leaves_the_rest_as_it_is(policy: Policy) -> None:
    other = policy.with_tau(0.6)
    assert other.tau == 0.6
    assert type(other) is type(policy)
    assert other.with_tau(policy.tau) == policy


@pytest.mark.parametrize(
    "policy",
    [SaliencePolicy(), SaliencePolicy(0.125), GatePolicy("stochastic", 0.3, runs=4), GatePolicy("always_on")],
)
def test_policies_survive_json(policy: Policy) -> None:
    assert policy_from_json(policy.to_json()) == policy


@pytest.mark.parametrize("value", [{}, {"kind": "exits"}, {"kind": None}, {"tau": 0.5}])
def test_other_kinds_are_refused(value: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="do not decide by a policy of kind") as caught:
        policy_from_json(value)
    assert "newer adaptify" in caught.value.hint
