"""What a search may choose from: `train.lr=1e-4..1e-1:log`, `train.epochs=5..20`, `gates.pool=1,2,4`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from adaptify.bounds import brief
from adaptify.errors import RecipeError
from adaptify.recipe import Recipe, known_keys
from adaptify.settings import parse_overrides

# What makes a network. Others say which images judge it, and how fast the work goes: no choice to be made.
_SECTIONS = ("gates", "train", "calibrate", "prune")
_BETWEEN, _LOG = "..", ":log"
_HINT = "Write --search train.lr=1e-4..1e-1:log, train.epochs=5..20 or gates.pool=1,2,4."


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, both included.

    Attributes:
        low: The least.
        high: The greatest.
        log: Whether each order of magnitude is as probable as another.
        whole: Whether only whole numbers are meant.
    """

    low: float
    high: float
    log: bool
    whole: bool

    @property
    def edges(self) -> tuple[Any, ...]:
        """Values that must fit the schema so that all do."""
        return self.low, self.high

    def holds(self, value: Any) -> bool:
        """Whether `value` may be chosen."""
        kinds = (int,) if self.whole else (int, float)
        return isinstance(value, kinds) and self.low <= value <= self.high

    def __str__(self) -> str:
        kind = "whole numbers from" if self.whole else "from"
        return f"{kind} {self.low:g} to {self.high:g}{', on a log scale' if self.log else ''}"


@dataclass(frozen=True)
class Choices:
    """Several values, none of them nearer to another."""

    values: tuple[Any, ...]

    @property
    def edges(self) -> tuple[Any, ...]:
        """Values that must fit the schema so that all do."""
        return self.values

    def holds(self, value: Any) -> bool:
        """Whether `value` may be chosen."""
        return value in self.values

    def __str__(self) -> str:
        return "one of " + ", ".join(str(value) for value in self.values)


Space = Mapping[str, Range | Choices]
"""Dotted key -> what may be chosen for it."""


def parse_space(words: Sequence[str], schema: type[Recipe]) -> Space:
    """Read what `--search` was given.

    Args:
        words: `KEY=LOW..HIGH`, `KEY=LOW..HIGH:log` or `KEY=A,B,C`, values as in `KEY=VALUE`. A range is of
            whole numbers where the setting is one.
        schema: The recipes of the method.

    Raises:
        RecipeError: A key is unknown or comes twice, or what is behind it is neither.

    >>> from adaptify.recipe import recipe_type
    >>> parse_space(["train.lr=1e-3..1e-1:log"], recipe_type("dgate"))
    {'train.lr': Range(low=0.001, high=0.1, log=True, whole=False)}
    """
    known = [key for key in known_keys(schema) if key.partition(".")[0] in _SECTIONS]
    space: dict[str, Range | Choices] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not text.strip():
            raise RecipeError(f"--search '{brief(word)}' says nothing to choose from", _HINT)
        (key,) = parse_overrides([f"{key}="], known)
        if key in space:
            raise RecipeError(f"--search has {key} twice", "Put all of its values into one.")
        is_range = _BETWEEN in text and "[" not in text
        space[key] = _range(key, text, schema) if is_range else _choices(key, text)
    return space


def _range(key: str, text: str, schema: type[Recipe]) -> Range:
    span, log, rest = text.partition(_LOG)
    ends = [_number(key, end) for end in span.split(_BETWEEN)]
    if len(ends) != 2 or None in ends or rest.strip():
        raise RecipeError(f"{key}: '{brief(text)}' is no range of numbers", _HINT)
    low, high = (end for end in ends if end is not None)
    whole = not _takes_fractions(schema, key)
    if whole and not (isinstance(low, int) and isinstance(high, int)):
        raise RecipeError(
            f"{key}: '{brief(text)}' has fractions, and it is a whole number",
            "Write whole numbers, as in 1..8, or single values: 1,2,4.",
        )
    if not low < high:
        raise RecipeError(
            f"{key}: '{brief(text)}' leaves nothing to choose", "Write the lower end first: 1..8."
        )
    if log and low <= 0:
        raise RecipeError(f"{key}: a log scale has no {low:g}", "Let it begin above 0, or leave out ':log'.")
    return Range(low, high, bool(log), whole)


def _choices(key: str, text: str) -> Choices:
    values = parse_overrides([f"{key}=[{text}]"])[key]
    if len(values) < 2:
        raise RecipeError(f"{key}: '{brief(text)}' leaves nothing to choose", _HINT)
    for index, value in enumerate(values):
        if value in values[:index]:
            raise RecipeError(f"{key}: {brief(str(value))} is there twice", "Name each value once.")
    return Choices(tuple(values))


def _number(key: str, text: str) -> float | None:
    value = parse_overrides([f"{key}={text}"])[key]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _takes_fractions(schema: type[BaseModel], key: str) -> bool:
    first, _, rest = key.partition(".")
    annotation = schema.model_fields[first].annotation
    if rest and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _takes_fractions(annotation, rest)
    kinds = [annotation]
    while kinds:
        kind = kinds.pop()
        if kind is float:
            return True
        kinds += get_args(kind)
    return False
