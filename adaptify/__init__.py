"""adaptify makes a pretrained network spend less compute.

    model = adaptify.load("model.safetensors")

Importing this package is cheap; torch is imported when something is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from adaptify.errors import AdaptifyError, ModelError, RecipeError, TargetError, UsageError
from adaptify.version import VERSION

if TYPE_CHECKING:
    from adaptify.artifact import load, save
    from adaptify.runtime.adaptive import AdaptiveModel
    from adaptify.runtime.optimize import optimize

__version__ = VERSION

_LAZY = {
    "load": "adaptify.artifact",
    "save": "adaptify.artifact",
    "AdaptiveModel": "adaptify.runtime.adaptive",
    "optimize": "adaptify.runtime.optimize",
}

__all__ = [
    "AdaptifyError",
    "AdaptiveModel",
    "ModelError",
    "RecipeError",
    "TargetError",
    "UsageError",
    "load",
    "optimize",
    "save",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module 'adaptify' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)
