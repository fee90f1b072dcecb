from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptify.data.holdout import stratified_split
from adaptify.errors import UsageError


@settings(max_examples=150, deadline=None)
@given(
    labels=st.lists(st.integers(0, 6), min_size=2, max_size=300),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**40),
)
def test_parts_are_disjoint_complete_and_stratified(labels: list[int], fraction: float, seed: int) -> None:
    y = torch.tensor(labels)
    kept, held = stratified_split(y, fraction, seed)
    assert sorted(kept.tolist() + held.tolist()) == list(range(len(y)))
    assert kept.tolist() == sorted(kept.tolist())
    assert held.tolist() == sorted(held.tolist())
    assert len(held) == min(max(round(fraction * len(y)), 1), len(y) - 1)
    share = len(held) / len(y)
    for label in set(labels):
        wanted = share * labels.count(label)
        assert abs(int((y[held] == label).sum()) - wanted) < 1 + 1e-9


def test_equal_classes_give_equal_shares() -> None:
    y = torch.arange(10).repeat_interleave(500)
    _, held = stratified_split(y, 0.1, seed=3)
    assert torch.bincount(y[held]).tolist() == [50] * 10


def test_the_split_is_the_same_on_every_machine() -> None:
    # The values are written down so that a change of the underlying stream is noticed.
    _, held = stratified_split(torch.tensor([0, 1] * 10), 0.3, seed=7)
    assert held.tolist() == [4, 6, 8, 9, 11, 15]
    assert held.tolist() != stratified_split(torch.tensor([0, 1] * 10), 0.3, seed=8)[1].tolist()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 10.0])
def test_a_share_outside_0_and_1_is_refused(fraction: float) -> None:
    with pytest.raises(UsageError, match=str(fraction)) as caught:
        stratified_split(torch.tensor([0, 1]), fraction, 0)
    assert caught.value.hint


def test_one_image_cannot_be_split() -> None:
    with pytest.raises(UsageError, match="cannot split 1 image"):
        stratified_split(torch.tensor([0]), 0.5, 0)
