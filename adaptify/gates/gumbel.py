"""Stochastic on-off gates (Herrmann, Bowen and Zabih, "Channel selection using Gumbel softmax", ECCV 2020).

A gate is two logits w0, w1; it is open with probability p = sigmoid(w1 - w0) (section 3.1). All that is ever
needed of the two is their difference, the log-odds, which is what the modules here yield.

Notation: N samples in a batch, G gates, C channels of the feature map that gates look at.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.fusion import fuse_linear_bn_eval

from adaptify.gates.averages import channel_averages

_FEW = 64
"""Up to so many gates, one product with a block diagonal matrix is faster than one for each gate."""


def sample_gates(odds: Tensor, temperature: float = 1.0) -> Tensor:
    """Draw gates from log-odds (...) by straight-through Gumbel-softmax: 0 or 1 forward, soft backward.

    The difference of two Gumbel variables is a logistic one, so a single draw per gate decides, and
    P(z = 1) = sigmoid(odds) at any temperature (section 3.1; Jang et al., 2017).

    Args:
        odds: Log-odds of being open, of any shape.
        temperature: Of the relaxation whose gradient is taken.
    """
    uniform = torch.rand_like(odds, dtype=torch.float32).clamp_(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((odds.float() + uniform.logit()) / temperature)
    hard = (soft > 0.5).to(soft)
    # Written so that the forward value is exactly 0 or 1.
    return hard + (soft - soft.detach())


def initial_odds(open_probability: float) -> float:
    """Log-odds of a gate that is open with this probability."""
    return math.log(open_probability) - math.log1p(-open_probability)


class IndependentGates(nn.Module):
    """Gates that see nothing: two free logits each. Once trained they say which channels the network needs.

    Args:
        gates: G.
        open_probability: Of every gate at first.
    """

    def __init__(self, gates: int, open_probability: float) -> None:
        super().__init__()
        half = initial_odds(open_probability) / 2
        # Weight decay drives the two logits towards w0 = -w1 (eq. 2); they start there.
        self.logits = nn.Parameter(torch.tensor([[-half], [half]]).repeat(1, gates))

    def forward(self) -> Tensor:
        """Log-odds (G,), the same for every sample."""
        return self.logits[1] - self.logits[0]


class DependentGates(nn.Module):
    """Gates that look at a feature map, each by average -> C x hidden -> BatchNorm -> ReLU -> 2 logits.

    All gates of a block are decided together: one linear layer for the first halves, one batched product
    for the second (appendix, "gate structure").

    Args:
        channels: C.
        gates: G.
        hidden: Width of each gate's own network.
        open_probability: Of every gate at first, as far as the bias decides.
        channel_axis: 1 for (N, C, ...), -1 for (N, ..., C).
    """

    def __init__(
        self,
        channels: int,
        gates: int,
        *,
        hidden: int = 16,
        open_probability: float = 0.98,
        channel_axis: int = 1,
    ) -> None:
        super().__init__()
        self.channel_axis = channel_axis
        self.squeeze = nn.Linear(channels, gates * hidden, bias=False)
        self.norm = nn.BatchNorm1d(gates * hidden)
        half = initial_odds(open_probability) / 2
        # Small at first: the network starts as its checkpoint, with gates nearly open whatever they see.
        self.weight = nn.Parameter(torch.randn(gates, hidden, 2) * 0.1 / math.sqrt(hidden))
        self.bias = nn.Parameter(torch.tensor([-half, half]).expand(gates, 1, 2).clone())

    def forward(self, features: Tensor) -> Tensor:
        """Log-odds (N, G) for features (N, C, ...) or (N, ..., C)."""
        hidden = torch.relu(self.norm(self.squeeze(channel_averages(features, self.channel_axis))))
        # (G, N, hidden) x (G, hidden, 2): a grouped convolution, as matrix products.
        by_gate = hidden.view(len(features), len(self.weight), -1).transpose(0, 1)
        logits = torch.baddbmm(self.bias, by_gate, self.weight)
        return (logits[:, :, 1] - logits[:, :, 0]).T

    def for_inference(self) -> FoldedGates:
        """The same decisions in fewer operations, which on a small network take as long as a layer."""
        return FoldedGates(self)

    def keep_gates(self, kept: Sequence[int]) -> DependentGates:
        """Return gates of their own: those with these positions, which decide as before."""
        hidden = self.weight.shape[1]
        smaller = DependentGates(
            self.squeeze.in_features, len(kept), hidden=hidden, channel_axis=self.channel_axis
        ).to(self.weight)
        rows = torch.as_tensor(kept, device=self.weight.device)
        units = (rows.unsqueeze(1) * hidden + torch.arange(hidden, device=rows.device)).flatten()
        state = {
            name: tensor if tensor.dim() == 0 else tensor[rows if name in ("weight", "bias") else units]
            for name, tensor in self.state_dict().items()
        }
        smaller.load_state_dict(state)
        return smaller.train(self.training)


class FoldedGates(nn.Module):
    """`DependentGates` for inference: BatchNorm folded, two logits made one. It cannot be trained.

    Args:
        gates: What it is made of.
    """

    squeeze_weight: Tensor
    squeeze_bias: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, gates: DependentGates) -> None:
        super().__init__()
        self.channel_axis = gates.channel_axis
        squeeze = fuse_linear_bn_eval(copy.deepcopy(gates.squeeze).eval(), copy.deepcopy(gates.norm).eval())
        self.register_buffer("squeeze_weight", squeeze.weight.detach())
        self.register_buffer("squeeze_bias", squeeze.bias.detach())
        weight = (gates.weight[:, :, 1] - gates.weight[:, :, 0]).detach()
        self.register_buffer("weight", torch.block_diag(*weight) if len(weight) <= _FEW else weight.clone())
        self.register_buffer("bias", (gates.bias[:, 0, 1] - gates.bias[:, 0, 0]).detach().clone())

    def forward(self, features: Tensor) -> Tensor:
        """Log-odds (N, G) for features (N, C, ...) or (N, ..., C)."""
        averages = channel_averages(features, self.channel_axis)
        # Functions, as calling a module takes a third as long again.
        hidden = torch.relu_(linear(averages, self.squeeze_weight, self.squeeze_bias))
        if self.weight.shape[1] == hidden.shape[1]:
            return linear(hidden, self.weight, self.bias)
        return hidden.view(-1, *self.weight.shape).mul_(self.weight).sum(-1).add_(self.bias)
