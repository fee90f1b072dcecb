"""Which device to compute on."""

from __future__ import annotations

import torch

from adaptify.errors import UsageError
from adaptify.parallel import group, launch


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of a name: `auto` (a GPU when there is one), `cpu`, `cuda` or `cuda:N`.

    Processes that work together have a GPU each: `auto` and `cuda` are that of this process.

    Raises:
        UsageError: The name is not one of these, this machine has no such device, or too few of them.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if group.size() > 1 and name.startswith("cuda"):
        return _own_gpu(name)
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"unknown device '{name}'", "Use auto, cpu, cuda or cuda:N.")
    if device.type == "cuda":
        found = torch.cuda.device_count()
        if (device.index or 0) >= found:
            seen = f"cuda:0 to cuda:{found - 1}" if found else "no GPU"
            raise UsageError(
                f"device '{name}' is not here: torch sees {seen}",
                "Use --device cpu, or look at `adaptify env` for what torch can see.",
            )
    return device


def _own_gpu(name: str) -> torch.device:
    """The GPU of this process, where several share a machine."""
    found, needed = torch.cuda.device_count(), launch.local_count()
    if name != "cuda":
        raise UsageError(
            f"device '{name}' is one GPU, and there are {group.size()} processes",
            "Give --device cuda, which is a GPU for each; CUDA_VISIBLE_DEVICES says which there are.",
        )
    if found < needed:
        raise UsageError(
            f"{needed} processes on a machine on which torch sees {found} GPU{'s' * (found != 1)}",
            f"Launch {found} processes on it, or compute with --device cpu.",
        )
    return torch.device("cuda", launch.local_rank())
