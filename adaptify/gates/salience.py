"""Saliences of layers and channels (Xia et al., "Fully dynamic inference with deep neural networks").

A salience is a number in [0, 1] that scales what a layer, or a channel, computes; at 0 it is not computed.
L-Net predicts one for a residual block (eq. 3), C-Net one for each channel of the block's first convolution
(eq. 4), both from the average of what enters the block.

Notation: N samples in a batch, G saliences, C channels of the feature map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adaptify.gates.averages import channel_averages

LEAK = 0.01
"""Slope of the leaky ReLU-1 outside of [0, 1]; the paper gives none."""


def relu1(x: Tensor) -> Tensor:
    """ReLU-1 (eq. 5): x within [0, 1], 0 below and 1 above."""
    return x.clamp(0, 1)


def leaky_relu1(x: Tensor, slope: float = LEAK) -> Tensor:
    """ReLU-1 that goes on with `slope` below 0 and above 1, so that what is closed, or full, still learns.

    At 0 and 1 themselves the gradient is 1: saliences start at 1.
    """
    bounded = relu1(x)
    return torch.where(x == bounded, x, bounded + slope * (x - bounded))


class SalienceNet(nn.Module):
    """L-Net and C-Net of a residual block: a shared global average and one linear layer (section 3.3).

    The rows of the linear layer are the two nets. It starts with weight 0 and bias 1: every salience is 1,
    and a network computes what it did before.

    Args:
        channels: C.
        gates: G: L-Net's salience first, then those of C-Net, as far as the block has them.
        channel_axis: 1 for (N, C, ...), -1 for (N, ..., C).
    """

    def __init__(self, channels: int, gates: int, *, channel_axis: int = 1) -> None:
        super().__init__()
        self.channel_axis = channel_axis
        self.linear = nn.Linear(channels, gates)
        nn.init.zeros_(self.linear.weight)
        nn.init.ones_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Saliences (N, G) before ReLU-1, for features (N, C, ...) or (N, ..., C)."""
        result: Tensor = self.linear(channel_averages(features, self.channel_axis))
        return result
