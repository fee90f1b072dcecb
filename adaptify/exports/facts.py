"""What a file says of itself: versioned JSON, the same in every format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from adaptify.assembly import Adapted
from adaptify.models.registry import Architecture
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.version import VERSION

KEY = "adaptify.export"
"""Name of the entry among the metadata of a file."""


def describe(model: Adapted, outputs: Sequence[str], classes: Sequence[str] | None = None) -> dict[str, Any]:
    """Return what is to be known of an exported network, as JSON values.

    Args:
        model: The network.
        outputs: Names of what the file yields.
        classes: Names of the classes, if they are known.
    """
    plan = model.plan
    facts: dict[str, Any] = {
        "format": KEY,
        "version": 1,
        "adaptify": VERSION,
        "outputs": list(outputs),
        "num_classes": model.num_classes,
        "classes": None if classes is None else list(classes),
        "policy": model.policy_json(),
        "architecture": None,
        "input": {"shape": list(model.traced.input_shape)},
        "method": None if plan is None or plan.method is None else plan.method.get("name"),
    }
    if plan is not None:
        spec = Architecture.from_json(plan.architecture).input
        facts["architecture"] = plan.architecture.get("name")
        facts["input"] |= {"mean": list(spec.mean), "std": list(spec.std), "resize": spec.resize}
    if "exit_index" in outputs and isinstance(model, AdaptiveModel):
        facts["exits"] = [*(item.site.name for item in model.exits), "output"]
    if "gates" in outputs and not isinstance(model, AdaptiveModel):
        facts["gates"] = [
            {"site": site.name, "closes": site.position, "gates": site.gates} for site in model.sites
        ]
    return facts


def dumps(facts: dict[str, Any]) -> str:
    """The facts as JSON text."""
    return json.dumps(facts, ensure_ascii=False)
