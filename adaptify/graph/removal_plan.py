"""Which channels were kept, as JSON: made once, replayed on a freshly built network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adaptify.errors import ModelError
from adaptify.graph.channels import Channels


def keep_to_json(channels: Channels, keep: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return `{group name: {"size": channels before, "kept": [indices]}}` for the groups that lose channels.

    Raises:
        ModelError: The masks do not fit the groups.
    """
    channels.check(keep)
    return {
        name: {"size": len(mask), "kept": mask.nonzero().flatten().tolist()}
        for name, mask in keep.items()
        if not bool(mask.bool().all())
    }


def keep_from_json(channels: Channels, value: Any) -> dict[str, Tensor]:
    """Return the masks (group name -> (size,) bool) that `keep_to_json` wrote.

    Raises:
        ModelError: The value is no such plan, or it was made for another network.
    """
    if not isinstance(value, Mapping):
        raise ModelError(f"a removal plan is an object, not {value!r}", "Write it with keep_to_json.")
    keep = {}
    for name, entry in value.items():
        if not _is_entry(entry):
            raise ModelError(
                f"the removal plan has {entry!r} for channel group '{name}'",
                'An entry looks like {"size": 4, "kept": [0, 2]}, indices ascending and below the size.',
            )
        mask = torch.zeros(entry["size"], dtype=torch.bool)
        mask[entry["kept"]] = True
        keep[name] = mask
    channels.check(keep)
    return keep


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, Mapping) or set(entry) != {"size", "kept"}:
        return False
    size, kept = entry["size"], entry["kept"]
    if not isinstance(size, int) or not isinstance(kept, list) or not all(type(i) is int for i in kept):
        return False
    return kept == sorted(set(kept)) and all(0 <= index < size for index in kept)
