"""Running a network on the own rows of a batch, and knowing what it says about the whole batch.

A loss that sees the predictions and gates of all rows is the loss of the whole batch, whatever it computes
from them: a mean, a target for the batch, a quantile. So losses know nothing of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from adaptify.parallel import group
from adaptify.parallel.whole_batch import WholeBatch
from adaptify.runtime.adaptive import Everything
from adaptify.runtime.gated import Decisions


def spread(network: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """What maps the images of this process (B, C, H, W) to what `network` says about those of all.

    Every process calls it at the same time, with as many images each. BatchNorm and random numbers in the
    network are as for the whole batch, too. With one process, it is `network` itself.
    """
    if group.size() == 1:
        return network

    def run(images: Tensor) -> Any:
        with WholeBatch(len(images)):
            output = network(images)
        return whole(output)

    return run


def whole(output: Any) -> Any:
    """What a network returned, for the rows of all processes; gates that look at no image are as they are."""
    if isinstance(output, Decisions):
        logits, *decided = output
        if output.gates.dim() > 1:
            decided = [group.gather_rows(part) for part in decided]
        return Decisions(group.gather_rows(logits), *decided)
    if isinstance(output, Everything):
        return Everything(group.gather_rows(output.logits), _gathered(output.exits), _gathered(output.gates))
    if isinstance(output, tuple):
        return tuple(whole(part) for part in output)
    return group.gather_rows(output)


def _gathered(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: group.gather_rows(part) for name, part in parts.items()}
