"""Which device to compute on."""

from __future__ import annotations

import torch

from adaptify.errors import UsageError


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of a name: `auto` (a GPU when there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: The name is not one of these, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
