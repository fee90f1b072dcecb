"""What a network does with images, for a file to be held against; and which images show all of it.

Notation: N images, M classes, E exits, K gates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptify.assembly import Adapted
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.gated import GatedModel

ROWS_PER_PATH = 3
"""Images that are kept for each way through the network."""

_FIRST = 32  # images that are kept whatever they show


@dataclass(frozen=True)
class Reference:
    """What a network yields for images, and how it came to that.

    Attributes:
        images: (N, C, H, W).
        logits: (N, M).
        decisions: What was decided: exit_index (N,), or gates (N, K); None where there is nothing to decide.
        slack: How far each decision was from falling the other way: (N, E) or (N, K); None likewise.
        paths: Ways through the network, each with the images (N,) bool that took it.
    """

    images: Tensor
    logits: Tensor
    decisions: Tensor | None
    slack: Tensor | None
    paths: Mapping[str, Tensor]

    def take(self, rows: Tensor) -> Reference:
        """What it is for some of the images, (K,) int64."""
        return Reference(
            self.images[rows],
            self.logits[rows],
            None if self.decisions is None else self.decisions[rows],
            None if self.slack is None else self.slack[rows],
            {name: taken[rows] for name, taken in self.paths.items()},
        )

    @property
    def untaken(self) -> tuple[str, ...]:
        """The ways that no image took."""
        return tuple(name for name, taken in self.paths.items() if not taken.any())


def observe(model: Adapted, batches: Iterable[Tensor], *, static: bool = False) -> Reference:
    """Run a network until every way through it was taken, and keep some images for each.

    Args:
        model: The network.
        batches: Images, as many as may be looked at.
        static: Whether the file decides nothing: gates are frozen.
    """
    model.eval()
    found: list[Reference] = []
    for images in batches:
        with torch.no_grad():
            found.append(_observe(model, images.contiguous(), static))
        seen = _joined(found)
        if all(int(taken.sum()) >= ROWS_PER_PATH for taken in seen.paths.values()):
            break
    return _some(_joined(found))


def _observe(model: Adapted, images: Tensor, static: bool) -> Reference:
    if isinstance(model, GatedModel):
        return _observe_gates(model, images, static)
    if static:
        return Reference(images, model(images), None, None, {})
    return _observe_exits(model, images)


def _observe_exits(model: AdaptiveModel, images: Tensor) -> Reference:
    outcome = model.run(images)
    everything = model.everything(images)
    slack = torch.full((len(images), len(model.exits)), torch.inf)
    for index, (name, logits) in enumerate(everything.exits.items()):
        if model.policy.enabled(index):
            scores = (
                everything.gates[name] if model.policy.score == "gate" else model.policy.rate(index, logits)
            )
            slack[:, index] = _distance(scores, model.policy.thresholds[index])
    names = [*(item.site.name for item in model.exits), "output"]
    paths = {
        f"leaves at {name}": outcome.exit_index == index
        for index, name in enumerate(names)
        if index == len(model.exits) or model.policy.enabled(index)
    }
    return Reference(images, outcome.logits, outcome.exit_index, slack, paths)


def _observe_gates(model: GatedModel, images: Tensor, static: bool) -> Reference:
    run = model.run(images)
    if static:
        return Reference(images, run.logits, None, None, {})
    slack = _distance(model.policy.openness(run.odds), model.policy.tau)
    paths: dict[str, Tensor] = {}
    place = 0
    for site in model.sites:
        if site.position == "layer":
            paths[f"runs {site.name}"] = run.gates[:, place] > 0
            paths[f"skips {site.name}"] = run.gates[:, place] <= 0
        place += site.gates
    return Reference(images, run.logits, run.gates, slack, paths)


def _distance(scores: Tensor, threshold: float) -> Tensor:
    return (scores - threshold).abs() / (1 + abs(threshold))


def _joined(parts: list[Reference]) -> Reference:
    first = parts[0]
    return Reference(
        torch.cat([part.images for part in parts]),
        torch.cat([part.logits for part in parts]),
        None if first.decisions is None else torch.cat([part.decisions for part in parts]),  # type: ignore[misc]
        None if first.slack is None else torch.cat([part.slack for part in parts]),  # type: ignore[misc]
        {name: torch.cat([part.paths[name] for part in parts]) for name in first.paths},
    )


def _some(reference: Reference) -> Reference:
    """The first images, and the first that took each way."""
    chosen = set(range(min(_FIRST, len(reference.images))))
    for taken in reference.paths.values():
        chosen.update(taken.nonzero().flatten()[:ROWS_PER_PATH].tolist())
    return reference.take(torch.tensor(sorted(chosen)))
