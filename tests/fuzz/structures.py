"""Damage to values: what a JSON, YAML or plan may hold that nobody expects there."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

DEEP = "@deep@"
"""Stands for lists within lists, deeper than any stack, until the text is written."""

NASTY: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    0.5,
    2**31,
    2**63,
    10**12,
    10**30,
    10**400,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../../etc/passwd",
    "\x1b[2J<script>alert(1)</script>\n",
    "\ud800",
    "os:system",
    "a" * 20_000,
    [],
    {},
    [None],
    {"": None},
    [0] * 1000,
    DEEP,
)


def damaged(value: Any, random: Random) -> Any:
    """Return a copy of a JSON value with one to three places changed."""
    value = json.loads(json.dumps(value))
    for _ in range(random.randint(1, 3)):
        places = _places(value)
        if not places:
            return _nasty(random)
        holder, key = random.choice(places)
        action = random.randint(0, 5)
        if action <= 2:
            holder[key] = _nasty(random)
        elif action == 3:
            del holder[key]
        elif action == 4:
            other, name = random.choice(places)
            if name in other if isinstance(other, dict) else name < len(other):
                holder[key] = json.loads(json.dumps(other[name]))
        elif isinstance(holder, dict):
            holder["unknown"] = _nasty(random)
        else:
            holder.extend(json.loads(json.dumps(holder[key : key + 1])) * random.choice((1, 100)))
    return value


def _nasty(random: Random) -> Any:
    # A copy: what is put into a value may be changed there, and even be put into itself.
    return copy.deepcopy(random.choice(NASTY))


def written(value: Any) -> str:
    """Return a damaged value as JSON text."""
    return json.dumps(value).replace(f'"{DEEP}"', "[" * 20_000 + "]" * 20_000)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """All places in a value, as what holds them and the key; of long lists the first and last ones."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        keys = (
            list(holder)
            if isinstance(holder, dict)
            else [*range(len(holder))[:3], *range(len(holder))[3:][-1:]]
        )
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], (dict, list)):
                waiting.append(holder[key])
    return found
