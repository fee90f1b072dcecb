"""What is wrong with a recipe, said with the place, the key that was meant and what to write."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pydantic import BaseModel, ValidationError

from adaptify.bounds import brief
from adaptify.errors import RecipeError, did_you_mean
from adaptify.recipe.schema import known_keys
from adaptify.recipe.source import KeyPath, place_of

# The one required key of each section.
_MISSING = {
    "data": ("data.source", "Say which images: --data FOLDER, cifar10:FOLDER, digits or fake:N."),
    "model": ("model.checkpoint", "Name the checkpoint: adaptify retrofit CKPT."),
}


def explain(error: ValidationError, schema: type[BaseModel], places: Mapping[KeyPath, str]) -> RecipeError:
    """The error to show for settings that do not fit `schema`: the first that is not a consequence."""
    # A key that is wrong may be why another one is missing: wrong ones come first.
    first = min(error.errors(include_url=False), key=lambda found: found["type"] == "missing")
    path = tuple(str(step) for step in first["loc"])
    key = ".".join(path)
    where = place_of(path, places)
    keys = known_keys(schema)
    if first["type"] == "extra_forbidden":
        level = len(path)
        split = [known.split(".") for known in keys]
        siblings = dict.fromkeys(".".join(k[:level]) for k in split if k[: level - 1] == list(path[:-1]))
        return RecipeError(
            f"{where}{brief(key)}: unknown key{_meant(key[:100], siblings, keys)}",
            f"There are: {', '.join(siblings or keys)}.",
        )
    if first["type"] == "missing":
        key, hint = _MISSING.get(path[0], (key, "Add it to the recipe."))
        return RecipeError(f"{where}{key} is missing", hint)
    if ".".join(path[:-1]) in keys and isinstance(first["loc"][-1], str):
        key = ".".join(path[:-1])  # behind a key that takes values of several kinds: the name of a kind
    message = first["msg"].removeprefix("Value error, ")
    given = f", got {brief(repr(first['input']))}" if first["loc"] and first["type"] != "value_error" else ""
    is_list = isinstance(first["input"], str) and "," in first["input"]
    hint = f"If it is to be a list, write '{key}=[{first['input']}]'." if is_list else "Correct the value."
    return RecipeError(f"{where}{brief(key)}: {brief(message[:1].lower() + message[1:])}{given}", hint)


def _meant(key: str, siblings: Collection[str], keys: Collection[str]) -> str:
    """The key that was meant: one beside it, or one of a section that was left out (`epochs=3`)."""
    within = [known for known in keys if known.rpartition(".")[2] == key]
    return did_you_mean(key, siblings or keys) or (f"; did you mean '{within[0]}'?" if within else "")
