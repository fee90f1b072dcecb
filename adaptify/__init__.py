"""adaptify makes a pretrained network spend less compute.

    run = adaptify.retrofit(network, method="dgate", train=loader, test=other_loader, max_drop=0.5)
    model = adaptify.load("model.safetensors")

Importing this package is cheap; torch is imported when something is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from adaptify.errors import AdaptifyError, ModelError, RecipeError, TargetError, UsageError
from adaptify.version import VERSION

if TYPE_CHECKING:
    from adaptify.api.run import Run, save
    from adaptify.api.use import calibrate, evaluate, export, load, report
    from adaptify.api.work import place, prune, retrofit
    from adaptify.runtime.adaptive import AdaptiveModel
    from adaptify.runtime.gated import GatedModel
    from adaptify.runtime.optimize import optimize

__version__ = VERSION

_LAZY = {
    "AdaptiveModel": "adaptify.runtime.adaptive",
    "GatedModel": "adaptify.runtime.gated",
    "Run": "adaptify.api.run",
    "calibrate": "adaptify.api.use",
    "evaluate": "adaptify.api.use",
    "export": "adaptify.api.use",
    "load": "adaptify.api.use",
    "optimize": "adaptify.runtime.optimize",
    "place": "adaptify.api.work",
    "prune": "adaptify.api.work",
    "report": "adaptify.api.use",
    "retrofit": "adaptify.api.work",
    "save": "adaptify.api.run",
}

__all__ = [
    "AdaptifyError",
    "AdaptiveModel",
    "GatedModel",
    "ModelError",
    "RecipeError",
    "Run",
    "TargetError",
    "UsageError",
    "calibrate",
    "evaluate",
    "export",
    "load",
    "optimize",
    "place",
    "prune",
    "report",
    "retrofit",
    "save",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module 'adaptify' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)
