"""Holding a file against the network that it was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptify.errors import TargetError
from adaptify.exports.reference import Reference

TOLERANCE = 1e-4
"""By how much a logit may differ, as a part of the largest one."""

CLOSE = 1e-4
"""How near to its threshold a decision may be for rounding to turn it; see `Reference.slack`."""

_MOST_TURNED = 0.2  # of the images: more than chance would have so near to a threshold

Runner = Callable[[Tensor], tuple[Tensor, ...]]
"""A file that was opened again: images (N, C, H, W) -> outputs."""


@dataclass(frozen=True)
class Checked:
    """What came of holding a file against its network.

    Attributes:
        images: How many were compared.
        max_error: The largest difference of a logit.
        relative_error: The same as a part of the largest logit.
        turned: Images that rounding let fall the other way at a threshold; they are not compared.
        untaken: Ways through the network that no image took.
    """

    images: int
    max_error: float
    relative_error: float
    turned: int
    untaken: tuple[str, ...]


def check(run: Runner, reference: Reference, *, batch: int | None = None) -> Checked:
    """Run a file on the images of `reference`, in batches of several sizes, and compare.

    Args:
        run: The file.
        reference: What it must yield.
        batch: The only batch size that it takes; None: any.

    Raises:
        TargetError: It yields something else.
    """
    largest = 0.0
    turned: set[int] = set()
    scale = float(reference.logits.abs().max())
    for rows in _batches(reference, batch):
        wanted = reference.take(rows)
        try:
            found = run(wanted.images)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise TargetError(
                f"the file fails on a batch of {len(rows)}: {reason[:300]}", _REFUSED
            ) from error
        same = _decided_alike(wanted, found)
        turned.update(rows[~same].tolist())
        if found[0].shape != wanted.logits.shape:
            raise TargetError(
                f"the file yields {tuple(found[0].shape)} instead of {tuple(wanted.logits.shape)}", _REFUSED
            )
        if same.any():
            difference = (found[0] - wanted.logits)[same].abs()
            error_ = float(difference.max()) if torch.isfinite(difference).all() else torch.inf
            largest = max(largest, error_)
    if not largest <= TOLERANCE * scale:
        raise TargetError(
            f"the file computes something else: logits differ by up to {largest:.3g}, where the largest is "
            f"{scale:.3g}",
            _REFUSED,
        )
    if len(turned) > _MOST_TURNED * len(reference.images):
        raise TargetError(
            f"the file decides otherwise for {len(turned)} of {len(reference.images)} images", _REFUSED
        )
    return Checked(
        len(reference.images), largest, largest / max(scale, 1e-30), len(turned), reference.untaken
    )


_REFUSED = "It was not kept. Try another --format, or report this network."


def _decided_alike(wanted: Reference, found: tuple[Tensor, ...]) -> Tensor:
    """Which images (N,) went the same way.

    Raises:
        TargetError: One went another way, and not by rounding.
    """
    if wanted.decisions is None or wanted.slack is None:
        return torch.ones(len(wanted.images), dtype=torch.bool)
    told = found[1]
    if told.shape != wanted.decisions.shape:
        raise TargetError(
            f"the file decides {tuple(told.shape)} instead of {tuple(wanted.decisions.shape)}", _REFUSED
        )
    if wanted.decisions.dim() == 1:
        parted = torch.minimum(wanted.decisions, told)
        same = wanted.decisions == told
    else:
        other = (wanted.decisions - told).abs() > TOLERANCE
        parted, same = other.int().argmax(1), ~other.any(1)
    # Behind the first decision that fell the other way, all others may.
    slack = wanted.slack.gather(1, parted.clamp(0, wanted.slack.shape[1] - 1).unsqueeze(1)).squeeze(1)
    wrong = ~same & ~(slack < CLOSE)
    if wrong.any():
        raise TargetError(f"the file decides otherwise for {int(wrong.sum())} images of a batch", _REFUSED)
    return same


def _batches(reference: Reference, batch: int | None) -> Iterator[Tensor]:
    """Rows to run together: all of them, some alone (nothing is left to run behind them), a few."""
    count = len(reference.images)
    every = torch.arange(count)
    if batch is not None:
        padded = torch.arange(-(-count // batch) * batch) % count
        yield from padded.split(batch)
        return
    yield every
    for taken in reference.paths.values():
        if taken.any():
            yield taken.nonzero().flatten()[:1]
    for size in (1, 2, 7):
        yield every[:size]
