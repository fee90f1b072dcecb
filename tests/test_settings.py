from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptify.errors import RecipeError
from adaptify.settings import parse_overrides

KNOWN = ["train.lr", "train.epochs", "method.loss", "seed"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("010", 10),
        ("0.5", 0.5),
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        (".5", 0.5),
        ("true", True),
        ("no", "no"),
        ("off", "off"),
        ("hinge", "hinge"),
        ("'3'", "3"),
        ("null", None),
        ("", None),
        ("~", None),
        ("[1, 2.5, a]", [1, 2.5, "a"]),
        ("{a: 1}", {"a": 1}),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("a=b", "a=b"),
        ("-.inf", -math.inf),
    ],
)
def test_values_are_read_as_yaml_1_2(text: str, value: Any) -> None:
    found = parse_overrides([f"key={text}"])["key"]
    assert found == value
    assert type(found) is type(value)


def test_the_last_word_holds() -> None:
    assert parse_overrides(["seed=1", "train.lr=2", "seed=3"], KNOWN) == {"seed": 3, "train.lr": 2}
    assert parse_overrides(None) == {}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.lrr=1", "train.lrr: unknown key; did you mean 'train.lr'?"),
        ("xyzzy=1", "xyzzy: unknown key"),
        ("train.lr", "'train.lr' is no setting"),
        ("=1", "'' in '=1' is no key"),
        ("train..lr=1", "'train..lr' in"),
        ("seed=[1, 2", "seed: cannot read the value '[1, 2'"),
        ("seed=!!python/object:os.system x", "seed: cannot read the value"),
    ],
)
def test_mistakes_are_recipe_errors_naming_the_word(word: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_overrides([word], KNOWN)
    assert message in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 3


@given(st.floats(allow_nan=False))
def test_every_float_comes_through(value: float) -> None:
    text = repr(value).replace("inf", ".inf")
    assert parse_overrides([f"key={text}"])["key"] == value


@given(st.text(max_size=20))
def test_any_text_is_a_value_or_a_recipe_error(text: str) -> None:
    try:
        found = parse_overrides([f"key={text}"])
    except RecipeError:
        found = {"key": None}
    assert set(found) == {"key"}
