"""BMNet: one small network that decides for all residual blocks at once (SGAD, section 3.1, Fig. 2b).

Notation: N samples in a batch, C channels, G gates.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from adaptify.errors import UsageError
from adaptify.gates.gumbel import initial_odds

_SMALL = 1 << 19
"""Weights up to which the convolution is faster as one matrix."""

OPEN = 0.8
"""Probability of every gate at first: all are open, and near enough to the threshold to learn quickly."""


class MaskNet(nn.Module):
    """What enters the first block -> average to a small map -> convolution -> a decision for every block.

    The last layer starts at zero but for its bias, so that at first every block is open for every sample:
    a network starts as its checkpoint.

    Args:
        channels: C of the feature map.
        gates: G.
        pool: Side of the map that features are averaged to; sequences are averaged to `pool**2` tokens.
        filters: Filters of the convolution, which is 3 wide.
        channel_axis: 1 for (N, C, ...), -1 for (N, ..., C).
        spatial_dims: 2 for maps, 1 for sequences of tokens.

    Raises:
        UsageError: The features are neither maps nor sequences.
    """

    def __init__(
        self,
        channels: int,
        gates: int,
        *,
        pool: int = 4,
        filters: int = 16,
        channel_axis: int = 1,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        if spatial_dims not in (1, 2):
            raise UsageError(
                f"a mask net looks at maps or sequences, not at features of {spatial_dims} spatial dims",
                "Use a method whose gates look at averages: --method gumbel gates.kind=dependent.",
            )
        self.channel_axis = channel_axis
        self.pool = pool
        self.spatial_dims = spatial_dims
        convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv1d
        norm = nn.BatchNorm2d if spatial_dims == 2 else nn.BatchNorm1d
        self.conv = convolution(channels, filters, 3, padding=1, bias=False)
        self.norm: nn.Module = norm(filters)
        self.linear = nn.Linear(filters * pool**2, gates)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, initial_odds(OPEN))

    def forward(self, features: Tensor) -> Tensor:
        """Log-odds (N, G) of being open for features (N, C, H, W), (N, H, W, C), (N, C, L) or (N, L, C)."""
        small = _shrink(features, self.channel_axis, self.pool, self.spatial_dims)
        hidden = torch.relu(self.norm(self.conv(small)))
        odds: Tensor = self.linear(hidden.flatten(1))
        return odds

    def for_inference(self) -> nn.Module:
        """The same decisions in fewer operations, which on a small network take as long as a layer.

        The result cannot be trained.
        """
        folded = copy.deepcopy(self).eval()
        assert isinstance(folded.norm, (nn.BatchNorm1d, nn.BatchNorm2d))
        folded.conv = fuse_conv_bn_eval(folded.conv, folded.norm)
        folded.norm = nn.Identity()
        inputs, outputs = (self.pool**2 * count for count in (self.conv.in_channels, self.conv.out_channels))
        return FoldedMaskNet(folded) if inputs * outputs <= _SMALL else folded

    def keep_gates(self, kept: Sequence[int]) -> MaskNet:
        """Return a network of its own that decides only the gates with these positions, and those alike.

        Raises:
            UsageError: There is no gate at a position.
        """
        gates = self.linear.out_features
        if not kept or not all(0 <= place < gates for place in kept):
            raise UsageError(
                f"there are {gates} gates, of which {list(kept)} cannot be kept",
                f"Name some of 0 to {gates - 1}.",
            )
        smaller = MaskNet(
            self.conv.in_channels,
            len(kept),
            pool=self.pool,
            filters=self.conv.out_channels,
            channel_axis=self.channel_axis,
            spatial_dims=self.spatial_dims,
        ).to(self.linear.weight)
        rows = torch.as_tensor(kept, device=self.linear.weight.device)
        state = dict(self.state_dict())
        state["linear.weight"], state["linear.bias"] = (
            state[f"linear.{name}"].index_select(0, rows) for name in ("weight", "bias")
        )
        smaller.load_state_dict(state)
        return smaller.train(self.training)

    def extra_repr(self) -> str:
        """Show what the layers do not."""
        return f"pool={self.pool}, channel_axis={self.channel_axis}"


class FoldedMaskNet(nn.Module):
    """`MaskNet` for inference: on so small a map the convolution is a matrix. It cannot be trained.

    The matrix has up to 16 / 9 as many products as the convolution that is counted, in fewer operations.

    Args:
        net: What it is made of, with BatchNorm folded into its convolution.
    """

    matrix: Tensor
    offset: Tensor

    def __init__(self, net: MaskNet) -> None:
        super().__init__()
        self.channel_axis, self.pool, self.spatial_dims = net.channel_axis, net.pool, net.spatial_dims
        places = (net.pool, net.pool) if net.spatial_dims == 2 else (net.pool**2,)
        inputs = net.conv.in_channels * net.pool**2
        with torch.no_grad():
            unit = torch.eye(inputs).to(net.conv.weight).view(inputs, net.conv.in_channels, *places)
            offset = net.conv(torch.zeros_like(unit[:1]))
            self.register_buffer("matrix", (net.conv(unit) - offset).flatten(1).T.contiguous())
            self.register_buffer("offset", offset.flatten())
        self.linear = net.linear

    def forward(self, features: Tensor) -> Tensor:
        """Log-odds (N, G); see `MaskNet.forward`."""
        small = _shrink(features, self.channel_axis, self.pool, self.spatial_dims).flatten(1)
        # Functions, as calling a module takes a third as long again.
        hidden = torch.relu_(F.linear(small, self.matrix, self.offset))
        return F.linear(hidden, self.linear.weight, self.linear.bias)


def _shrink(features: Tensor, channel_axis: int, pool: int, spatial_dims: int) -> Tensor:
    """Average features to (N, C, pool, pool), or (N, C, pool**2)."""
    if channel_axis in (-1, spatial_dims + 1):
        features = features.movedim(-1, 1)
    if spatial_dims == 2:
        return F.adaptive_avg_pool2d(features, pool)
    return F.adaptive_avg_pool1d(features, pool**2)
