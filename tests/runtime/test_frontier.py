from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptify.errors import ModelError, TargetError, UsageError
from adaptify.runtime.frontier import Frontier, OperatingPoint


def point(accuracy: float, macs: float, *thresholds: float) -> OperatingPoint:
    return OperatingPoint(thresholds or (0.5,), accuracy, macs, (0.5, 0.5))


@pytest.fixture
def frontier() -> Frontier:
    points = (point(0.80, 40.0), point(0.90, 60.0), point(0.931, 80.0), point(0.93, 100.0, math.inf))
    return Frontier(points, base_accuracy=0.93, base_macs=98.0)


@pytest.mark.parametrize(
    ("max_drop", "macs"), [(0.0, 80.0), (2.99, 80.0), (3.0, 60.0), (12.9, 60.0), (13.0, 40.0), (-0.1, 80.0)]
)
def test_the_cheapest_point_within_the_drop_is_taken(
    frontier: Frontier, max_drop: float, macs: float
) -> None:
    assert frontier.choose(max_drop=max_drop).macs == macs


@pytest.mark.parametrize(("max_macs", "macs"), [(1.5, 80.0), (60 / 98, 60.0), (0.6, 40.0), (40 / 98, 40.0)])
def test_the_most_accurate_point_within_the_macs_is_taken(
    frontier: Frontier, max_macs: float, macs: float
) -> None:
    assert frontier.choose(max_macs=max_macs).macs == macs


def test_both_targets_must_hold(frontier: Frontier) -> None:
    assert frontier.choose(max_drop=3, max_macs=0.7).macs == 60.0
    with pytest.raises(TargetError, match=r"1 points within 70\.0%") as caught:
        frontier.choose(max_drop=1, max_macs=0.7)
    assert "61.2% of the MACs at a drop of 3.00 points" in caught.value.hint


def test_a_missed_target_names_the_nearest_point(frontier: Frontier) -> None:
    with pytest.raises(TargetError, match=r"30\.0%") as caught:
        frontier.choose(max_macs=0.3)
    assert "40.8% of the MACs at a drop of 13.00 points" in caught.value.hint
    with pytest.raises(TargetError, match="-1 points") as caught:
        frontier.choose(max_drop=-1)
    assert "81.6% of the MACs at a gain of 0.10 points" in caught.value.hint
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "no target"),
        ({"max_macs": 60.0}, "max_macs is 60.0"),
        ({"max_macs": 0.0}, "max_macs is 0.0"),
        ({"max_macs": math.nan}, "max_macs is nan"),
        ({"max_drop": math.nan}, "max_drop is nan"),
    ],
)
def test_requests_without_meaning_are_refused(
    frontier: Frontier, request_: dict[str, float], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        frontier.choose(**request_)


finite = st.floats(allow_nan=False, allow_infinity=False)
thresholds = st.lists(finite | st.just(math.inf), max_size=3).map(tuple)
points = st.builds(OperatingPoint, thresholds, finite, finite, st.lists(finite, max_size=4).map(tuple))


@given(st.builds(Frontier, st.lists(points, max_size=3).map(tuple), finite, finite))
def test_json_keeps_every_bit(frontier: Frontier) -> None:
    text = json.dumps(frontier.to_json(), allow_nan=False)

    assert Frontier.from_json(json.loads(text)) == frontier


def test_never_exit_is_null_in_json() -> None:
    assert point(0.9, 1.0, 0.25, math.inf).to_json()["thresholds"] == [0.25, None]


@pytest.mark.parametrize(
    "damaged",
    [
        {},
        {"points": 3, "base_accuracy": 1, "base_macs": 1},
        {"points": [{}], "base_accuracy": 1, "base_macs": 1},
    ],
)
def test_damaged_json_is_a_model_error(damaged: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="not a"):
        Frontier.from_json(damaged)
