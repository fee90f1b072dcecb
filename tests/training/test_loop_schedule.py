from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from adaptify.training.options import LoopOptions, Schedule
from adaptify.training.schedule import rate_factor


def factors(schedule: Schedule, steps: int, per_epoch: int) -> list[float]:
    return [rate_factor(schedule, step, steps, per_epoch) for step in range(steps)]


def test_a_constant_rate_stays() -> None:
    assert factors(Schedule(kind="constant"), 5, 5) == [1.0] * 5


def test_multistep_falls_at_its_milestones() -> None:
    schedule = Schedule(kind="multistep", milestones=(0.3, 0.8), gamma=0.5)
    assert factors(schedule, 10, 5) == [1.0] * 3 + [0.5] * 5 + [0.25] * 2


def test_cosine_is_half_a_period() -> None:
    expected = [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert factors(Schedule(kind="cosine"), 4, 4) == pytest.approx(expected)
    assert expected[2] == pytest.approx(0.5)


def test_exponential_would_reach_gamma_at_the_end() -> None:
    found = factors(Schedule(kind="exponential", gamma=0.01), 4, 2)
    assert found == pytest.approx([1.0, 10**-0.5, 0.1, 10**-1.5])


def test_warm_up_rises_in_equal_parts_and_the_rest_of_the_run_has_the_cosine() -> None:
    found = factors(Schedule(kind="cosine", warmup=1), 12, 4)
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert found[4:] == pytest.approx([(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)])


def test_warm_up_does_not_move_milestones() -> None:
    found = factors(Schedule(kind="multistep", milestones=(0.5,), warmup=0.5), 8, 4)
    assert found == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.1])


def test_a_run_may_be_all_warm_up() -> None:
    assert factors(Schedule(warmup=9), 4, 2) == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    "setting",
    [
        {"schedule": {"kind": "multistep", "milestones": [1.5]}},
        {"schedule": {"gamma": 2}},
        {"lr": 0},
        {"lr": float("inf")},
        {"ema": 1.0},
        {"clip": 0},
        {"accumulate": 0},
        {"distill": {"weight": 1}},
        {"label_smoothing": 1},
        {"epochs": -1},
        {"learning_rate": 1},
    ],
)
def test_options_that_make_no_sense_are_refused(setting: dict) -> None:
    with pytest.raises(ValidationError):
        LoopOptions.model_validate(setting)


def test_options_read_back_as_they_were_written() -> None:
    options = LoopOptions(ema=0.9, distill={"weight": 2, "temperature": 3}, schedule={"kind": "constant"})
    assert LoopOptions.model_validate(options.model_dump(mode="json")) == options
