"""An exit with a gate of its own, which learns who leaves (Herrmann, Bowen and Zabih, section 5, S1.5)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from adaptify.gates.gumbel import initial_odds


class ExitGate(nn.Module):
    """Two 3x3 convolutions with BatchNorm, averages on a grid, one linear layer: the log-odds of leaving.

    Args:
        channels: C, of the feature map.
        width: Filters of each convolution; 128 in the paper.
        grid: Side of the grid of averages; 4 in the paper.
        leave_probability: Of every sample at first, as far as the bias decides.
    """

    def __init__(
        self, channels: int, *, width: int = 128, grid: int = 4, leave_probability: float = 0.5
    ) -> None:
        super().__init__()
        self.grid = grid
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.linear = nn.Linear(width * grid * grid, 1)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.constant_(self.linear.bias, initial_odds(leave_probability))

    def forward(self, x: Tensor) -> Tensor:
        """Log-odds (N,) of leaving: the difference of the two logits of a Gumbel gate, for (N, C, H, W)."""
        odds: Tensor = self.linear(F.adaptive_avg_pool2d(self.features(x), self.grid).flatten(1))
        return odds.squeeze(1)


class LearnedExit(nn.Module):
    """A head and the gate that says which samples it is asked about.

    Args:
        head: Maps features to logits (N, M).
        gate: Maps features to log-odds (N,) of leaving.
    """

    def __init__(self, head: nn.Module, gate: ExitGate) -> None:
        super().__init__()
        self.head = head
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, M)."""
        logits: Tensor = self.head(x)
        return logits
