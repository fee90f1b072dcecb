"""Settings: the base of every section of a recipe, and trailing `key=value` words on the command line.

Values are read as YAML 1.2 does: `1e-3` is a number, `no` is a word, `[1, 2]` is a list, `null` is
nothing. (PyYAML's own rules are of YAML 1.1, where `1e-3` is a word and `no` is false.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from adaptify.bounds import MOST_DEPTH, brief
from adaptify.errors import RecipeError, did_you_mean

_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*")


class Section(BaseModel):
    """A section of a recipe: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CoreLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of the YAML 1.2 core schema, and without aliases.

    A few lines of aliases stand for any number of values (a "billion laughs"), and no settings need them.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Read one value; refuse aliases, and values that are nested deeper than `MOST_DEPTH`."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read: write it out", mark)
        if self._depth > MOST_DEPTH:
            raise yaml.composer.ComposerError(None, None, "it is nested too deeply", mark)
        self._depth += 1
        try:
            node: yaml.Node | None = super().compose_node(parent, index)
        finally:
            self._depth -= 1
        return node


class CoreDumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which also puts quotes around texts that `CoreLoader` would read otherwise."""


def _int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # YAML 1.1 reads 010 as eight


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


# Resolvers are looked up by the first character of a scalar; none of YAML 1.1's stay.
CoreLoader.yaml_implicit_resolvers = {}
CoreDumper.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    for _class in (CoreLoader, CoreDumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
CoreLoader.add_constructor("tag:yaml.org,2002:int", _int)
CoreLoader.add_constructor("tag:yaml.org,2002:float", _float)


def parse_overrides(words: Sequence[str] | None, known: Iterable[str] | None = None) -> dict[str, Any]:
    """Read words like `train.lr=0.01` into `{"train.lr": 0.01}`; of two with one key, the last holds.

    Args:
        words: The words as they came.
        known: All dotted keys that may be set; `None` lets every key through.

    Raises:
        RecipeError: A word without `=`, an unknown or malformed key, a value that is not YAML.

    >>> parse_overrides(["train.lr=1e-3", "loss=hinge", "sites=[layer1, layer2]"])
    {'train.lr': 0.001, 'loss': 'hinge', 'sites': ['layer1', 'layer2']}
    """
    keys = None if known is None else sorted(known)
    settings: dict[str, Any] = {}
    for word in words or ():
        key, equals, text = word.partition("=")
        key = key.strip()
        if not equals:
            raise RecipeError(
                f"'{word}' is no setting", "Settings are written key=value, as in train.lr=0.01."
            )
        if not _KEY.fullmatch(key):
            raise RecipeError(
                f"'{key}' in '{word}' is no key", "Keys are names with dots between, as in train.lr."
            )
        if keys is not None and key not in keys:
            raise RecipeError(
                f"{key}: unknown key{did_you_mean(key, keys)}", f"There are: {', '.join(keys)}."
            )
        settings[key] = _value(key, text)
    return settings


def _value(key: str, text: str) -> Any:
    try:
        return yaml.load(text, Loader=CoreLoader)  # a safe loader
    except (yaml.YAMLError, ValueError) as error:  # not YAML, or a number that is none
        problem = getattr(error, "problem", None) or "not YAML"
        raise RecipeError(
            f"{key}: cannot read the value '{brief(text)}': {brief(problem)}",
            "Put quotes around text with special characters.",
        ) from error
