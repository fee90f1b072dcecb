"""Packed and fused convolutions compute what the convolutions they replace computed."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptify.graph.program import compile_graph
from adaptify.graph.trace import trace
from adaptify.runtime.fuse import PackedConv2d, can_fuse, fuse_convolutions

pytestmark = pytest.mark.skipif(not can_fuse(), reason="this PyTorch lacks the operations")


class Block(nn.Module):
    """Two convolutions, and a subclass decides what joins them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)


class Plain(Block):
    """A convolution with ReLU, and one without."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4, H, W) to itself."""
        return self.second(F.relu(self.first(x)))


class Residual(Block):
    """x + f(x) with ReLU, the convolution on the right."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4, H, W) to itself."""
        return F.relu(x + self.second(self.first(x).relu()))


class Projection(Block):
    """Both sides of the addition are convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4, H, W) to itself."""
        return torch.add(self.first(x), self.second(x))


class Doubled(Block):
    """A convolution added to itself, then used again: its value is needed more than once."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4, H, W) to itself."""
        y = self.first(x)
        return self.second(y + y) + y


class Overwritten(Block):
    """The input of a convolution is written over before the addition: the convolution may not move there."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4, H, W) to itself."""
        y = self.first(x)
        z = self.second(y)
        return y.relu_() + z


class Broadcast(Block):
    """What is added is smaller than the result of the convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4, H, W) to itself."""
        return self.second(x) + self.first(x).mean((2, 3), keepdim=True)


class Shared(Block):
    """One convolution runs twice."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4, H, W) to itself."""
        return F.relu(self.first(F.relu(self.first(x))))


# Network, and how many of its convolutions can be packed.
CASES = [
    (Plain, 2),
    (Residual, 2),
    (Projection, 2),
    (Doubled, 2),
    (Overwritten, 2),
    (Broadcast, 2),
    (Shared, 0),
]


@pytest.mark.parametrize(("kind", "packed"), CASES, ids=[kind.__name__ for kind, _ in CASES])
@pytest.mark.parametrize("count", [1, 3])
def test_fused_computes_the_same(kind: type[Block], packed: int, count: int) -> None:
    torch.manual_seed(0)
    model = kind().eval().requires_grad_(False)
    traced = trace(copy.deepcopy(model), (4, 6, 6))
    fused = fuse_convolutions(traced)
    images = torch.randn(count, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    wanted = model(images.clone(memory_format=torch.preserve_format))
    with torch.inference_mode():
        found = compile_graph(fused.graph)(fused.root, images)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert sum(isinstance(module, PackedConv2d) for module in fused.root.modules()) == packed


def test_a_residual_end_becomes_one_operation() -> None:
    traced = fuse_convolutions(trace(Residual().eval().requires_grad_(False), (4, 6, 6)))
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]


def test_a_value_that_is_kept_stays() -> None:
    traced = trace(Residual().eval().requires_grad_(False), (4, 6, 6))
    addition = next(node.name for node in traced.graph.nodes if node.meta["name"] == "add")
    fused = fuse_convolutions(traced, keep={addition})
    assert addition in {node.name for node in fused.graph.nodes}
    assert [node.op for node in fused.graph.nodes][-2:] == ["call_function", "output"]


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ],
    ids=["same", "reflect"],
)
def test_what_the_operations_do_not_cover_is_left_alone(conv: nn.Conv2d) -> None:
    traced = trace(nn.Sequential(conv.eval().requires_grad_(False)), (4, 6, 6))
    fused = fuse_convolutions(traced)
    assert not any(isinstance(module, PackedConv2d) for module in fused.root.modules())
