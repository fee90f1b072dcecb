from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import Any

import pytest

from adaptify.cli import values
from adaptify.errors import UsageError
from adaptify.runtime.budget import Budget


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(values)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    "read",
    [
        values.names,
        values.numbers,
        values.size,
        values.thresholds,
        values.macs_or_fraction,
        values.budgets,
        values.json_object,
    ],
)
def test_what_is_not_given_stays_not_given(read: Callable[[None, str], Any]) -> None:
    assert read(None, "--option") is None


@pytest.mark.parametrize(
    ("read", "text", "told"),
    [
        (values.names, "", "--option names nothing"),
        (values.numbers, "0.5,", "--option: '' is no number"),
        (values.numbers, "nan", "--option: 'nan' is no number"),
        (values.numbers, "inf", "--option: 'inf' is no number"),
        (values.size, "0", "--option '0' is no size"),
        (values.size, "-8", "--option '-8' is no size"),
        (values.size, "8x8x8", "--option '8x8x8' is no size"),
        (values.size, "99999999", "--option '99999999' is no size"),
        (values.thresholds, "1,,2", "--option: '' is no number"),
        (values.thresholds, "1,nan", "--option: 'nan' is no number"),
        (values.thresholds, "-inf", "--option: '-inf' is no number"),
        (values.macs_or_fraction, "", "--option '' is neither a fraction"),
        (values.macs_or_fraction, "0", "--option '0' is neither a fraction"),
        (values.macs_or_fraction, "0M", "--option '0M' is neither a fraction"),
        (values.macs_or_fraction, "-0.5", "--option '-0.5' is neither a fraction"),
        (values.macs_or_fraction, "45", "--option '45' is neither a fraction"),
        (values.macs_or_fraction, "50%", "--option '50%' is neither a fraction"),
        (values.macs_or_fraction, "nan", "--option 'nan' is neither a fraction"),
        (values.macs_or_fraction, "4e7", "--option '4e7' is neither a fraction"),
        (values.macs_or_fraction, "5T", "--option '5T' is neither a fraction"),
        (values.budgets, "0.5,,45M", "--option '' is neither a fraction"),
        (values.json_object, "{", "--option '{' is not JSON"),
        (values.json_object, "3", "--option '3' is no JSON object"),
    ],
)
def test_what_cannot_be_read_is_named(read: Callable[[str, str], Any], text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(text, "--option")
    assert caught.value.message.startswith(told)
    assert "--option" in caught.value.hint


@pytest.mark.parametrize("word", ["never", "Never", "inf", "null"])
def test_an_exit_that_is_never_taken_has_many_names(word: str) -> None:
    assert values.thresholds(f"1, {word}", "--thresholds") == [1.0, None]


@pytest.mark.parametrize(
    ("text", "amount", "absolute"),
    [
        (" .5 ", 0.5, False),
        ("2", 2.0, False),
        ("1000", 1000.0, True),
        ("1.5 g", 1.5e9, True),
        ("1.2K", 1200.0, True),
    ],
)
def test_a_budget_is_a_fraction_or_macs(text: str, amount: float, absolute: bool) -> None:
    assert values.macs_or_fraction(text, "--budget") == Budget(amount, absolute)


def test_only_what_was_given_comes_back() -> None:
    assert values.request_of(budget="0.6") == {"max_macs": 0.6}
    assert values.request_of(max_drop=0.0) == {"max_drop": 0.0}
    assert values.request_of() == {}
    assert values.request_of(max_drop=1.0, budget="45M", confidence=0.9, rule="quota") == {
        "max_drop": 1.0,
        "max_macs": 45e6,
        "confidence": 0.9,
        "rule": "quota",
    }
    assert values.data_settings(
        data="x", val_split=None, input_size="8", mean=None, std="0.5", workers=0, skip_corrupt=False
    ) == {"data.source": "x", "data.input_size": [8, 8], "data.std": [0.5], "data.workers": 0}
