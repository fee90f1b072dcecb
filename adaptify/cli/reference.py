"""The recipe reference: every setting with its type, default and bounds, as Markdown, from the schemas."""

from __future__ import annotations

import inspect
import json
import math
import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from adaptify.methods import find_method
from adaptify.recipe import Recipe
from adaptify.settings import Section

_SIGNS = {Ge: ("ge", ">="), Gt: ("gt", ">"), Le: ("le", "<="), Lt: ("lt", "<")}
_LENGTHS = {MinLen: ("min_length", "at least"), MaxLen: ("max_length", "at most")}
_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}
_HEAD = ("| key | value | default | what it is |", "| --- | --- | --- | --- |")

_INTRODUCTION = """\
# The recipe reference

A recipe is a YAML file with the sections below. `gates` and `train` are the method's own. The same keys are
words on the command line: `train.lr=0.01`. This page is what `adaptify recipes reference` prints: it is made
from the schemas that check recipes, and cannot differ from them. `adaptify recipes reference METHOD` prints
the part of one method, and `adaptify recipes validate` checks a file.

A recipe is small: what is left out has its default.

```yaml
method: dgate
model: {checkpoint: model.pth}
data: {source: digits}
calibrate: {max_drop: 0.5}
```
"""


def reference(methods: tuple[str, ...]) -> str:
    """Return the whole reference, for the methods that are named."""
    return "\n".join(
        [_INTRODUCTION, "## All methods", "", *_shared(), *(method_part(name) for name in methods)]
    )


def method_part(name: str) -> str:
    """Return the settings of one method.

    Raises:
        UsageError: There is no such method.
    """
    method = find_method(name)
    parts = [f"## {name}", "", f"{method.summary[:1].upper()}{method.summary[1:]}.", ""]
    for section, schema in (("gates", method.Gates), ("train", method.Train)):
        parts += _section(section, schema)
    return "\n".join(parts)


def _shared() -> Iterator[str]:
    yield from _table(
        "", {k: v for k, v in Recipe.model_fields.items() if _schema(v.annotation) is None}, Recipe
    )
    yield ""
    for name, field in Recipe.model_fields.items():
        schema = _schema(field.annotation)
        if schema is not None and schema is not Section:
            yield from _section(name, schema)


def _section(name: str, schema: type[BaseModel]) -> list[str]:
    fields = schema.model_fields
    if not fields:
        return [f"### {name}", "", "No settings.", ""]
    return [f"### {name}", "", _summary(schema), "", *_table(f"{name}.", fields, schema), ""]


def _table(prefix: str, fields: dict[str, FieldInfo], schema: type[BaseModel]) -> list[str]:
    return [*_HEAD, *_rows(prefix, fields, schema)]


def _rows(prefix: str, fields: dict[str, FieldInfo], schema: type[BaseModel]) -> Iterator[str]:
    told = _attributes(schema)
    for name, field in fields.items():
        inner = _schema(field.annotation)
        value = _value(field.annotation, field.metadata)
        if inner is None:
            yield _row(f"`{prefix}{name}`", value, _default(field), told.get(name, ""))
        else:
            if type(None) in get_args(field.annotation):
                yield _row(
                    f"`{prefix}{name}`", "the keys below, or null", _default(field), told.get(name, "")
                )
            yield from _rows(f"{prefix}{name}.", inner.model_fields, inner)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _value(annotation: Any, metadata: list[Any]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _value(arguments[0], [*arguments[1:], *metadata])
    if origin is Literal:
        return ", ".join(f"`{_json(item)}`" for item in arguments)
    if origin in (Union, types.UnionType):
        kinds = [item for item in arguments if item is not type(None)]
        return ", or ".join(
            [*(_value(item, metadata) for item in kinds), *(["null"] if len(kinds) < len(arguments) else [])]
        )
    if origin is tuple:
        return f"[{_value(arguments[0], [])}, ...]{_bounds(metadata)}"
    if origin is dict:
        return "keys and values"
    return f"{_NAMES.get(annotation, 'value')}{_bounds(metadata)}"


def _bounds(metadata: list[Any]) -> str:
    found = [
        f" {sign} {_figure(getattr(item, name))}"
        for item in _flat(metadata)
        for kind, (name, sign) in _SIGNS.items()
        if isinstance(item, kind)
    ]
    found += [
        f" of {words} {getattr(item, name)}"
        for item in _flat(metadata)
        for kind, (name, words) in _LENGTHS.items()
        if isinstance(item, kind)
    ]
    return ",".join(found)


def _figure(limit: float) -> str:
    return f"{limit:g}" if limit < 1e9 else f"2^{math.log2(limit):g}"


def _flat(metadata: list[Any]) -> Iterator[Any]:
    """Constraints, also those that stand inside a `Field` of their own."""
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else (item,)


def _schema(annotation: Any) -> type[BaseModel] | None:
    for item in (annotation, *get_args(annotation)):
        if isinstance(item, type) and issubclass(item, BaseModel):
            return item
    return None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    return f"`{_json(field.get_default(call_default_factory=True))}`"


def _json(value: Any) -> str:
    return json.dumps(value)


def _summary(schema: type[BaseModel]) -> str:
    return (schema.__doc__ or "").strip().partition("\n\n")[0].replace("\n", " ")


def _attributes(schema: type[BaseModel]) -> dict[str, str]:
    """What the docstrings of a schema and of those that it extends say about each attribute."""
    found: dict[str, str] = {}
    for kind in reversed(schema.__mro__):
        _, _, text = inspect.cleandoc(kind.__dict__.get("__doc__") or "").partition("Attributes:\n")
        for name, words in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE):
            found[name] = " ".join(words.split())
    return found
