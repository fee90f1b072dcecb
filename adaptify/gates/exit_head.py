"""The d-gate: one linear layer on pooled features that proposes a class, and says how surely."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from adaptify.errors import UsageError


class ExitHead(nn.Module):
    """Decision gate of Shafiee et al., section 2: d = W^T x - b on the pooled feature of a site.

    The paper's -b is the bias of `linear`. A sample may leave the network here when the largest
    of its scores d reaches the threshold of the gate (Algorithm 1); comparing is the work of the
    runtime, so the same head serves gates of any loss.

    Args:
        channels: C, the number of channels of the feature map.
        classes: M, the number of scores.
        pool: k, the side of the grid of averages taken from the feature map; 1 is the global
            average. A sequence (N, L, C) has no grid and is averaged in k * k equal runs.
        channel_axis: 1 for (N, C, H, W), -1 for (N, H, W, C) and (N, L, C).

    Raises:
        UsageError: A size below 1, or an axis that is neither 1 nor -1.
    """

    def __init__(self, channels: int, classes: int, *, pool: int = 1, channel_axis: int = 1) -> None:
        super().__init__()
        if min(channels, classes, pool) < 1:
            raise UsageError(
                f"an exit head needs positive sizes, got channels={channels}, classes={classes}, pool={pool}",
                "Give whole numbers of at least 1.",
            )
        if channel_axis not in (1, -1):
            raise UsageError(f"channel_axis is {channel_axis}", "Use 1 for (N, C, ...), -1 for (N, ..., C).")
        self.pool_size = pool
        self.channel_axis = channel_axis
        self.linear = nn.Linear(channels * pool * pool, classes)

    def pool(self, x: Tensor) -> Tensor:
        """Average features: (N, C, H, W), (N, H, W, C), (N, L, C) or (N, C) to (N, C * k * k).

        Strides are respected: a feature map in channels_last memory is read as it lies.

        Raises:
            UsageError: Vectors (N, C) where a grid of averages was asked for.
        """
        if self.pool_size == 1:
            # One reduction over a strided view: measured faster than pooling kernels in both layouts.
            if x.dim() == 2:
                return x
            first = 2 if self.channel_axis == 1 else 1
            return x.mean(tuple(range(first, first + x.dim() - 2)))
        if x.dim() < 3:
            raise UsageError(
                f"pool={self.pool_size} needs positions to average over, not features {tuple(x.shape)}",
                "Use pool=1 at this site.",
            )
        if self.channel_axis == -1:
            x = x.movedim(-1, 1)
        if x.dim() == 3:
            return F.adaptive_avg_pool1d(x, self.pool_size**2).flatten(1)
        return F.adaptive_avg_pool2d(x, self.pool_size).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Scores d of every class: features of the site to (N, M)."""
        scores: Tensor = self.linear(self.pool(x))
        return scores

    def extra_repr(self) -> str:
        """Show what the linear layer does not."""
        return f"pool={self.pool_size}, channel_axis={self.channel_axis}"
