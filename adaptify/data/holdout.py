"""Setting a share of the images aside, stratified by class."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptify.errors import UsageError


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split positions into those that stay and those that are held out, with the same mix of classes.

    The samples are shuffled within their class, put in a row class after class, and every
    `1 / fraction`-th of the row is taken (systematic sampling): `round(fraction * N)` in all, and of a
    class with n images n * fraction rounded down or up.

    Args:
        labels: (N,) int64.
        fraction: Share to hold out, in (0, 1); at least one image is held out and one stays.
        seed: The same seed gives the same split on every machine.

    Returns:
        Positions that stay and positions that are held out, (N - H,) and (H,) int64, both ascending.

    Raises:
        UsageError: `fraction` is not inside (0, 1), or there are fewer than two samples.
    """
    count = len(labels)
    if not 0.0 < fraction < 1.0:
        raise UsageError(
            f"cannot set a share of {fraction} of the images aside",
            "Choose a share between 0 and 1, for example 0.1.",
        )
    if count < 2:
        raise UsageError(
            f"cannot split {count} image(s) into two parts", "Give at least two images of each class."
        )
    # RandomState, because numpy guarantees its stream for all versions; torch and default_rng do not.
    shuffled = np.random.RandomState(seed % 2**32).permutation(count)
    by_class = shuffled[np.argsort(labels.numpy()[shuffled], kind="stable")]
    take = min(max(round(fraction * count), 1), count - 1)
    steps = np.arange(count + 1, dtype=np.int64) * take // count
    held = steps[1:] > steps[:-1]
    return _positions(by_class[~held]), _positions(by_class[held])


def _positions(chosen: NDArray[np.int_]) -> Tensor:
    return torch.from_numpy(np.sort(chosen).astype(np.int64))
