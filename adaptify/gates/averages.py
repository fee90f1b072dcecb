"""What most gates look at: averages of feature maps over all places."""

from __future__ import annotations

from torch import Tensor


def channel_averages(features: Tensor, channel_axis: int) -> Tensor:
    """Average features (N, C, ...), or (N, ..., C), over everything but samples and channels: (N, C).

    Args:
        features: The features.
        channel_axis: 1 or -1.
    """
    # Written for speed: on a small network this takes as long as a layer.
    if features.dim() == 2:
        return features
    first = 2 if channel_axis == 1 else 1
    return features.mean(tuple(range(first, first + features.dim() - 2)))
