"""Two processes, each with half of every batch, do what one process does with the whole."""

from __future__ import annotations

from typing import Any

import pytest
import shared_work
import torch
from launching import launch
from shared_work import EXACT, ROUNDED, STEPS, TRAININGS

BF16_EPS = torch.finfo(torch.bfloat16).eps


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes found, over gloo."""
    file = tmp_path_factory.mktemp("together") / "found.pt"
    done = launch(shared_work.__file__, file)
    assert [process.returncode for process in done] == [0, 0], "".join(process.stderr for process in done)
    found: dict[str, Any] = torch.load(file, weights_only=False)
    return found


def test_both_processes_know_the_loss_of_the_whole_batch(together: dict[str, Any]) -> None:
    assert together["processes"]["size"] == 2
    first, second = together["processes"]["losses"]
    assert first.equal(second)


@pytest.mark.parametrize("name", STEPS)
def test_loss_and_gradients_are_those_of_the_whole_batch(name: str, together: dict[str, Any]) -> None:
    alone = STEPS[name]()
    shared = together[name]
    assert shared.keys() == alone.keys()
    assert sum(key.startswith("gradient") for key in alone) >= 3
    # Small gradients are differences of large numbers: what they may differ by is a part of the largest.
    scale = max(float(value.abs().max()) for key, value in alone.items() if key.startswith("gradient"))
    for key, expected in alone.items():
        atol = 1e-5 * scale if key.startswith("gradient") else 1e-5
        torch.testing.assert_close(
            shared[key], expected, rtol=1e-4, atol=atol, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("name", ROUNDED)
def test_in_mixed_precision_they_are_equal_but_for_its_rounding(name: str, together: dict[str, Any]) -> None:
    alone = ROUNDED[name]()
    shared = together[name]
    assert shared.keys() == alone.keys()
    scale = max(float(value.abs().max()) for key, value in alone.items() if key.startswith("gradient"))
    for key, expected in alone.items():
        torch.testing.assert_close(
            shared[key],
            expected,
            rtol=BF16_EPS,
            atol=2 * BF16_EPS * (scale if key.startswith("gradient") else 1),
            msg=lambda text, key=key: f"{key}: {text}",
        )
    exact = STEPS[name.removesuffix(", bfloat16")]()
    assert not torch.equal(alone["loss"], exact["loss"]), "there was nothing to round"


@pytest.mark.parametrize("name", TRAININGS)
def test_training_ends_with_the_same_weights_and_figures(name: str, together: dict[str, Any]) -> None:
    alone = TRAININGS[name]()
    written, shared = alone.pop("written"), dict(together[name])
    assert shared.pop("written") == written
    assert "metrics.csv" in written
    torch.testing.assert_close(shared, alone, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", EXACT)
def test_what_is_measured_is_exactly_the_same(name: str, together: dict[str, Any]) -> None:
    torch.testing.assert_close(together[name], EXACT[name](), rtol=0, atol=0)


def test_what_cannot_be_shared_is_refused(together: dict[str, Any]) -> None:
    assert shared_work.refusals() == {}
    told = together["refusals"]
    assert told["batch"].startswith("train.batch_size=33 cannot be shared by 2 processes")
    assert "34" in told["batch"]
    assert told["compile"].startswith("train.compile is for one process")
