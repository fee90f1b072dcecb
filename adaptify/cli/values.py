"""Values of options that typer does not know: lists, sizes, thresholds, JSON.

Every function takes the text of an option, or `None` when it was not given, which comes back as it is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptify.errors import UsageError
from adaptify.runtime.budget import Budget

if TYPE_CHECKING:
    from adaptify.recipe import ModelSection

NEVER = ("never", "none", "null", "inf")
ALWAYS = -3.4028234663852886e38  # the least float32: every score reaches it
_PREFIXES = {"K": 1e3, "M": 1e6, "G": 1e9}


def names(text: str | None, option: str) -> list[str] | None:
    """Read names with commas between.

    Raises:
        UsageError: There is no name in it.

    >>> names("layer1, layer2.*", "--sites")
    ['layer1', 'layer2.*']
    """
    if text is None:
        return None
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise UsageError(f"{option} names nothing", f"Write, for example: {option} layer1,layer2")
    return found


def numbers(text: str | None, option: str) -> list[float] | None:
    """Read numbers with commas between.

    Raises:
        UsageError: One of them is no finite number.

    >>> numbers("0.485,0.456,0.406", "--mean")
    [0.485, 0.456, 0.406]
    """
    if text is None:
        return None
    return [_number(part, option, f"{option} 0.485,0.456,0.406") for part in text.split(",")]


def counts(text: str, option: str) -> tuple[int, ...]:
    """Read positive whole numbers with commas between; each counts once, in their order.

    Raises:
        UsageError: One of them is none.

    >>> counts("1, 8,32", "--batch-sizes")
    (1, 8, 32)
    """
    found = []
    for part in text.split(","):
        if not re.fullmatch(r"\s*[1-9]\d{0,6}\s*", part, re.ASCII):
            raise UsageError(
                f"{option}: '{part.strip()}' is no number of images", f"Write, for example: {option} 1,8,32"
            )
        found.append(int(part))
    return tuple(dict.fromkeys(found))


def size(text: str | None, option: str) -> list[int] | None:
    """Read the size of an image, as [height, width].

    Raises:
        UsageError: It is none.

    >>> size("224", "--input-size"), size("192x256", "--input-size")
    ([224, 224], [192, 256])
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+)\s*(?:[x,]\s*(\d+)\s*)?", text, re.IGNORECASE)
    sides = [int(side) for side in found.groups() if side] if found else []
    if not sides or not all(1 <= side <= 1 << 16 for side in sides):
        raise UsageError(
            f"{option} '{text}' is no size of an image", f"Write {option} 224, or 192x256 for height x width."
        )
    return [sides[0], sides[-1]]


def thresholds(text: str | None, option: str) -> list[float | None] | None:
    """Read one threshold per exit; `None` in the list is an exit that is never taken.

    Raises:
        UsageError: One of them is neither a number, nor `never`, nor `always`.

    >>> thresholds("1.5, never, -0.25", "--thresholds")
    [1.5, None, -0.25]
    >>> thresholds("never, always", "--thresholds")
    [None, -3.4028234663852886e+38]
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    example = f"{option} 1.5,never"
    words: dict[str, float | None] = {**dict.fromkeys(NEVER), "always": ALWAYS}
    return [
        words[part.lower()] if part.lower() in words else _number(part, option, example) for part in parts
    ]


def macs_or_fraction(text: str | None, option: str) -> Budget | None:
    """Read how much a sample may spend: a fraction of the network's MACs, or MACs with K, M or G behind.

    Raises:
        UsageError: It is neither.

    >>> macs_or_fraction("0.5", "--budget"), macs_or_fraction("45M", "--budget")
    (Budget(amount=0.5, absolute=False), Budget(amount=45000000.0, absolute=True))
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([KMG]?)\s*", text, re.IGNORECASE)
    amount = float(found[1]) * _PREFIXES.get(found[2].upper(), 1) if found else math.nan
    with suppress(UsageError):
        budget = Budget.of(amount)
        if found and (budget.absolute or not found[2]):  # 0.001K is no fraction
            return budget
    raise UsageError(
        f"{option} '{text.strip()}' is neither a fraction of the MACs nor a number of them",
        f"Write {option} 0.6 to keep 60%, or {option} 45M for 45 million a sample (K, M, G; 1K at least).",
    )


def budgets(text: str | None, option: str) -> list[Budget] | None:
    """Read budgets with commas between; see `macs_or_fraction`.

    Raises:
        UsageError: One of them is none.

    >>> [str(budget) for budget in budgets("0.5, 45M", "--budget")]
    ['50.0% of the MACs', '45.0 M MACs']
    """
    if text is None:
        return None
    read = (macs_or_fraction(part, option) for part in text.split(","))
    return [budget for budget in read if budget is not None]


def json_object(text: str | None, option: str) -> dict[str, Any] | None:
    """Read a JSON object.

    Raises:
        UsageError: It is none.

    >>> json_object('{"num_classes": 10}', "--arch-kwargs")
    {'num_classes': 10}
    """
    if text is None:
        return None
    example = f"""Write, for example: {option} '{{"num_classes": 10}}'"""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{option} '{text}' is not JSON: {error}", example) from error
    if not isinstance(value, dict):
        raise UsageError(f"{option} '{text}' is no JSON object", example)
    return value


def request_of(
    *,
    max_drop: float | None = None,
    budget: str | None = None,
    by_hand: str | None = None,
    confidence: float | None = None,
    rule: str | None = None,
) -> dict[str, Any]:
    """Return what an operating point is asked for by: those of the options that were given.

    Raises:
        UsageError: Options were given that do not go together, or one is of the wrong kind.
    """
    macs = macs_or_fraction(budget, "--budget")
    request = given(
        {
            "max_drop": max_drop,
            "max_macs": None if macs is None else macs.amount,
            "thresholds": thresholds(by_hand, "--thresholds"),
            "confidence": confidence,
            "rule": rule,
        }
    )
    if "thresholds" in request and len(request) > 1:
        raise UsageError(
            "--thresholds leaves nothing to choose by --max-drop, --budget, --confidence or --rule",
            "Give one or the other.",
        )
    if confidence is not None and max_drop is None:
        raise UsageError("--confidence is about a drop in accuracy", "Give --max-drop as well.")
    if confidence is not None and not 0 < confidence < 1:
        raise UsageError(
            f"a confidence of {confidence:g} is not between 0 and 1", "0.95 is right 19 times of 20."
        )
    return request


def data_settings(
    *,
    data: str | None,
    val_split: float | None,
    input_size: str | None,
    mean: str | None,
    std: str | None,
    workers: int | None,
    skip_corrupt: bool,
    holdout: float | None = None,
) -> dict[str, Any]:
    """Return the options about data that were given, by their keys in a recipe."""
    return given(
        {
            "data.source": data,
            "data.holdout": holdout,
            "data.val_split": val_split,
            "data.input_size": size(input_size, "--input-size"),
            "data.mean": numbers(mean, "--mean"),
            "data.std": numbers(std, "--std"),
            "data.workers": workers,
            "data.skip_corrupt": skip_corrupt or None,
        }
    )


def model_settings(
    *, checkpoint: str | None, arch: str | None, arch_kwargs: str | None, trust_pickle: bool
) -> dict[str, Any]:
    """Return the options about the checkpoint that were given, by their keys in a recipe."""
    return given(
        {
            "model.checkpoint": checkpoint,
            "model.arch": arch,
            "model.arch_kwargs": json_object(arch_kwargs, "--arch-kwargs"),
            "model.trust_pickle": trust_pickle or None,
        }
    )


def check_consent(model: ModelSection, said: Mapping[str, Any]) -> None:
    """Make sure that code is run because who calls says so, and not because a recipe does.

    Args:
        model: The network that is asked for, whoever asked.
        said: Options and `key=value` words of the command line, by their keys in a recipe.

    Raises:
        UsageError: The recipe asks to run code, and the command line does not.
    """
    from adaptify.models.registry import is_user_code

    trusted = bool(said.get("model.trust_pickle"))
    if model.trust_pickle and not trusted:
        asked = f"trusts the code that {model.checkpoint} names"
    elif is_user_code(model.arch) and not trusted and "model.arch" not in said:
        asked = f"builds the network by {model.arch}, which runs that code"
    else:
        return
    raise UsageError(f"the recipe {asked}", "If you trust both too, say so: --trust-code.")


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given: those that are not `None`."""
    return {key: value for key, value in options.items() if value is not None}


def file_and_words(checkpoint: str | None, words: list[str]) -> tuple[str | None, list[str]]:
    """Tell the checkpoint from the first KEY=VALUE word, when the recipe names the checkpoint."""
    if checkpoint is not None and "=" in checkpoint and not Path(checkpoint).exists():
        return None, [checkpoint, *words]
    return checkpoint, words


def _number(text: str, option: str, example: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{option}: '{text.strip()}' is no number", f"Write, for example: {example}")
    return value
