from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptify.training.records import ExitRecords
from adaptify.training.temperature import fit_temperature


def drawn(seed: int, *, samples: int = 4000, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, M), and labels (N,) drawn from the probabilities that they give."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, classes, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)


@given(seed=st.integers(0, 50), temperature=st.floats(0.1, 20))
@settings(deadline=None, max_examples=30)
def test_a_known_temperature_is_found(seed: int, temperature: float) -> None:
    logits, labels = drawn(seed)
    assert fit_temperature(temperature * logits, labels) == pytest.approx(temperature, rel=0.1)


def test_no_other_temperature_is_likelier() -> None:
    logits, labels = drawn(0)
    found = fit_temperature(3 * logits, labels)

    def loss(temperature: float) -> float:
        return float(F.cross_entropy(3 * logits.double() / temperature, labels))

    assert loss(found) < min(loss(found * 1.01), loss(found / 1.01))


def test_records_are_scored_with_temperatures_and_predict_without() -> None:
    logits, labels = drawn(0, samples=50)
    plain = ExitRecords.of([logits, logits], logits, labels, "confidence")
    scaled = ExitRecords.of([logits, logits], logits, labels, "confidence", (2.0, 0.5))
    assert torch.equal(scaled.predictions, plain.predictions)
    assert torch.equal(scaled.scores[0], (logits / 2).softmax(1).amax(1))
    assert (scaled.scores[0] < plain.scores[0]).all()
    assert (scaled.scores[1] > plain.scores[1]).all()


def test_some_samples_can_be_taken() -> None:
    logits, labels = drawn(0, samples=10)
    records = ExitRecords.of([logits], logits + 1e-3, labels, "margin")
    taken = records.take(torch.tensor([7, 2]))
    assert taken.scores.tolist() == records.scores[:, [7, 2]].tolist()
    assert taken.predictions.tolist() == records.predictions[:, [7, 2]].tolist()
    assert taken.labels.tolist() == labels[[7, 2]].tolist()


@given(seed=st.integers(0, 50), factor=st.floats(0.2, 5))
@settings(deadline=None, max_examples=20)
def test_scaled_logits_have_a_scaled_temperature(seed: int, factor: float) -> None:
    """What comes out is the same distribution, whatever the logits were multiplied by."""
    logits, labels = drawn(seed, samples=500)
    assert fit_temperature(factor * logits, labels) == pytest.approx(
        factor * fit_temperature(logits, labels), rel=1e-3
    )


@given(seed=st.integers(0, 50), scale=st.floats(0.2, 5), at=st.floats(0, 1))
@settings(deadline=None, max_examples=20)
def test_the_loss_is_convex_in_the_inverse_temperature(seed: int, scale: float, at: float) -> None:
    """So the minimum that is found is the only one."""
    logits, labels = drawn(seed, samples=200)
    logits = scale * logits.double()

    def loss(inverse: float) -> float:
        return float(F.cross_entropy(logits * inverse, labels))

    low, high = 0.05, 5.0
    assert loss(at * low + (1 - at) * high) <= at * loss(low) + (1 - at) * loss(high) + 1e-9
    assert (
        loss(1 / fit_temperature(logits, labels))
        <= min(loss(low + (high - low) * step / 20) for step in range(21)) + 1e-6
    )


def test_what_is_always_right_is_sharpened_and_what_says_nothing_flattened_within_bounds() -> None:
    logits, _ = drawn(0, samples=200)
    assert fit_temperature(logits, logits.argmax(1)) == pytest.approx(1 / 64, rel=1e-2)
    assert fit_temperature(logits, logits.argmin(1)) == pytest.approx(64, rel=1e-2)
